"""The Ray actors of an attempt, and their placement."""
