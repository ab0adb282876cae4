"""Ray as the service sees it: attempts submitted as Ray jobs, and why one was lost."""
