"""Results as tables, JSON, CSV and Markdown. Knows how figures are shown, not where they come from."""
