"""What a job is: its specification, states, store, storage, sources and dispatch.

Imports neither torch nor the `api` and `workers` packages; Ray is imported only by
`service.cluster.ray_jobs`, so the command line and the client stay light.
"""
