"""Measures a model in the same way before and after compression."""
