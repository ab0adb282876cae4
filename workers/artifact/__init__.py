"""The folder that a user downloads: written, and expanded to a dense checkpoint."""
