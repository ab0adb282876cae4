"""Estimates of what a job will make and take, before it runs."""
