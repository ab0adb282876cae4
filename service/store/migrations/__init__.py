"""Alembic migrations of the jobs database, run by `service.store.database.Database.migrate`.

To add one: write ``versions/NNNN_what_changes.py`` after the newest; the test of this package
fails until the migrations and `service.store.tables` agree.
"""
