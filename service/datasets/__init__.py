"""Datasets that users upload: received, checked as they arrive, kept in the bucket, removed."""
