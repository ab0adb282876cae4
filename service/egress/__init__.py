"""Requests to addresses that users choose, kept away from everything that is not public."""
