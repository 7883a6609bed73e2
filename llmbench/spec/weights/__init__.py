"""The weights of a model in files: the names of their tensors."""
