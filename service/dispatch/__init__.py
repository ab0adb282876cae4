"""Submits queued jobs to the cluster, watches their attempts and cleans up after ended jobs."""
