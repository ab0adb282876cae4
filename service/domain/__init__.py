"""What a job is: plain data and pure functions, without I/O."""
