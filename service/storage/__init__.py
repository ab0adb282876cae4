"""The S3 bucket, and how an artifact comes to lie in it."""
