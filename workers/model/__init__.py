"""Loads the source model, and maps its files to tensors by name."""
