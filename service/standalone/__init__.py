"""The whole service on one machine: its own Ray, S3 server, API and dispatcher."""
