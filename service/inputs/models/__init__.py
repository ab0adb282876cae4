"""Models: what their files say, and whether transformers takes it."""
