"""The real PyTorch model of a ModelSpec, the one that is traced, measured and checked against transformers."""
