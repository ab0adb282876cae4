"""The service's side of Ray: submits attempts as Ray jobs, and explains why one was lost."""
