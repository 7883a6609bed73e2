"""Write results as tables, JSON, CSV or Markdown. This package computes no figures."""
