"""The Ray actors of an attempt, and where they run."""
