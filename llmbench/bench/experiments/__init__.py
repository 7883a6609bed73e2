"""The experiments of `llmbench bench`, a file each."""
