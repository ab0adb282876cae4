"""What a model is worth, measured the same way before and after compression."""
