"""The client of the REST API: requests, answers, checked downloads. Needs httpx alone."""
