"""The page of one job, and the parts of it that change while one looks.

page.py        the page, and its parts by themselves
parts.py       what the templates need to know
logs.py        a part of a log
log_stream.py  the stream of a log that is being printed
live.py        the stream of its steps
actions.py     cancel, retry, delete
timeline.py    attempts with their steps, from the job's events; pure
remedies.py    what to do about an error, by its code; pure
artifacts.py   what the page says of each artifact
"""
