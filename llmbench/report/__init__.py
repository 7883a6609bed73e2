"""Results as tables, JSON, CSV and Markdown. This package shows figures; it does not compute them."""
