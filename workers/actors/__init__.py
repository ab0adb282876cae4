"""The Ray actors of an attempt: the workers, the assemblers beside them, and their placement."""
