"""The models, texts and problems that a job names: where they lie, and whether they can be used."""
