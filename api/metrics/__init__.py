"""Metrics for Prometheus: of the requests to this process, and of everybody's jobs.

Each API process answers for itself. The gauges of jobs and queue are read from the database when
they are asked for, so all processes of an installation give the same. The counters of what happens
to jobs begin with the process: it counts every event in the database once, whoever wrote it.
"""
