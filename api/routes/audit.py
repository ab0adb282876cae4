"""Read the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.access import AdminDep
from api.cursors import decode_cursor, encode_cursor
from api.routes import guarded
from api.schemas.audit import AuditPage, AuditRecord
from api.services import ServicesDep
from service.domain.spec.fields import NAME_PATTERN

router = APIRouter(prefix="/v1/audit", tags=["access"], responses=guarded())

MAX_RECORDS = 1000


@router.get("", summary="Read the audit log")
def list_audit(
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
    limit: Annotated[int, Query(ge=1, le=MAX_RECORDS)] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    tenant: Annotated[
        str | None, Query(pattern=NAME_PATTERN, description="Only changes with its keys.")
    ] = None,
) -> AuditPage:
    """Who changed what, and from where; newest first."""
    last = decode_cursor(cursor, r"[1-9]\d{0,17}")
    found = services.store.audit.list_records(
        limit=limit + 1, before=None if last is None else int(last), tenant=tenant
    )
    page = found[:limit]
    return AuditPage(
        records=[AuditRecord.model_validate(record) for record in page],
        next_cursor=encode_cursor(str(page[-1].id)) if len(found) > limit else None,
    )
