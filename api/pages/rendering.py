"""From a template to an answer, with the headers that confine a page."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from fastapi import Request
from jinja2 import Environment
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from service.assets import hashed_name
from service.client.versions import VERSION
from service.domain.principal import Principal
from service.report.rendering import environment

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # the style sheet has small pictures in itself
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",  # a page is one tenant's, and stands for what is now
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@cache
def templates() -> Environment:
    """The templates of pages, and those of reports that pages include."""
    made = environment("api.pages")
    made.filters["coded"] = coded
    return made


def coded(text: str) -> Markup:
    """Text whose parts between backticks are code.

    >>> coded("`auto`: <the model's>")
    Markup('<code>auto</code>: &lt;the model&#39;s&gt;')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """The answer with a template of `api/pages/templates`.

    Templates know `root` (the path below which a proxy mounts the server), `asset`, `principal`
    (None before the sign-in) and `version`, besides `values`.
    """
    return HTMLResponse(rendered(request, template, **values), status, HEADERS)


def rendered(request: Request, template: str, **values: Any) -> str:
    root: str = request.scope.get("root_path", "")
    principal: Principal | None = getattr(request.state, "principal", None)

    def asset(name: str) -> str:
        return f"{root}/assets/{hashed_name(name)}"

    return (
        templates()
        .get_template(template)
        .render(root=root, asset=asset, principal=principal, version=VERSION, **values)
    )
