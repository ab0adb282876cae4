"""Scripts and style sheets, under names that change with their content."""

from __future__ import annotations

import mimetypes

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.assets import by_hashed_name, read_asset

PATH = "/assets/{name:path}"
HEADERS = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@router.get(PATH)
def asset(name: str) -> Response:
    """One file of `service/assets`, by the name with its digest."""
    try:
        content = read_asset(by_hashed_name()[name])
    except KeyError:
        raise HTTPException(404) from None
    return Response(content, media_type=mimetypes.guess_type(name)[0], headers=HEADERS)
