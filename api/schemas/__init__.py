"""The bodies of responses, one module per subject."""
