"""The jobs database: the single source of truth for the state of every job.

Every transition is one compare-and-set, ``UPDATE jobs ... WHERE id AND state AND attempt``, in a
transaction that also appends an event; the second of two concurrent ones changes nothing and raises
an error. Every write by an attempt carries its number and is refused (`AttemptStale`) unless the
job is running that attempt. An attempt renews its lease while it runs. All times come from the
database's clock. The API, the dispatchers and the drivers share the database.

All methods raise DatabaseUnavailable when the database cannot be used, and those that take a job
id raise JobNotFound when there is no such job.
"""

from __future__ import annotations

from sqlalchemy import select

from service.domain.job import DEFAULT_TENANT, Submitter
from service.store import tables
from service.store.attempts import Attempts
from service.store.audit import Audit
from service.store.census import Statistics
from service.store.claims import Claims
from service.store.credentials import StoredCredentials
from service.store.database import Database
from service.store.datasets import Datasets, StoredDatasets
from service.store.deliveries import Deliveries
from service.store.keys import Keys
from service.store.news import News
from service.store.records import Records
from service.store.tenants import Tenants, ensure_tenant
from service.store.users import Users
from service.store.webhooks import Webhooks


class Store:
    """The jobs database, for users, followers, dispatchers and attempts. Threads may share it."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self.records = Records(self._database)
        self.keys = Keys(self._database)
        self.tenants = Tenants(self._database)
        self.credentials = StoredCredentials(self._database)
        self.audit = Audit(self._database)
        self.claims = Claims(self._database)
        self.attempts = Attempts(self._database)
        self.news = News(self._database)
        self.statistics = Statistics(self._database)
        self.deliveries = Deliveries(self._database)
        self.stored_datasets = StoredDatasets(self._database)

    def users(self, tenant: str, submitter: Submitter | None = None) -> Users:
        """The jobs database as this tenant's users may see and change it.

        Jobs that are created through it are the submitter's.
        """
        return Users(self._database, tenant, submitter)

    def webhooks(self, tenant: str) -> Webhooks:
        """The webhooks of this tenant."""
        return Webhooks(self._database, tenant)

    def datasets(self, tenant: str) -> Datasets:
        """The datasets of this tenant, as its users may see and change them."""
        return Datasets(self._database, tenant)

    def migrate(self) -> None:
        """Create the database with the default tenant, or bring its schema up to date."""
        self._database.migrate()
        with self._database.writing() as connection:
            ensure_tenant(connection, DEFAULT_TENANT)

    def check_schema(self) -> None:
        """Raise SchemaMismatch unless the database has the schema of this version."""
        self._database.check_schema()

    def check(self) -> None:
        """Raise DatabaseUnavailable unless the database answers and has its tables."""
        with self._database.reading() as connection:
            connection.execute(select(tables.jobs.c.id).limit(1)).all()

    def close(self) -> None:
        self._database.close()
