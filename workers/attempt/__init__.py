"""One attempt of a job, from its driver's start to its end."""
