"""The logs of attempts: read from Ray while it has them, and kept in the bucket afterwards."""
