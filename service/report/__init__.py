"""A job's report for people: the words, tables and pictures of `report.json`, as HTML.

The driver writes it into every artifact, the API answers with it, and the job's page shows it.
"""
