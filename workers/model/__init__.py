"""The source model: its files, its tensors by name, and how it is loaded."""
