"""The specification of a job: the user's request, validated once, at the edge.

These models are the body of ``POST /v1/jobs`` and are stored with the job. A field that is
unknown, of the wrong type or out of bounds is an error; nothing is coerced from text. That holds
for a stored specification, too: a field that a newer version has added is never left out.
"""
