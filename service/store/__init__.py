"""The jobs database: its tables, the queue, and every write that may happen to a job."""
