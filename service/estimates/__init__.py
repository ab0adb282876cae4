"""What a job will take and make, said before it runs."""
