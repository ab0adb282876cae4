"""Proves that an artifact, loaded as its user will load it, is the model that was compressed."""
