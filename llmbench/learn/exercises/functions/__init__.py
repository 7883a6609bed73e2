"""Function exercises. The reference of each is what the PyTorch model computes."""
