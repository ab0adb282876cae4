"""The S3 bucket, and how an artifact is published there."""
