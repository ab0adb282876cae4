"""The report as one HTML file, which opens from a disk without a network."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment
from markupsafe import Markup

from service.assets import read_asset
from service.report.fields import Part
from service.report.rendering import environment
from service.report.view import ReportView

STYLES = ("vendor/pico.min.css", "vendor/uplot.min.css", "pictures.css")
SCRIPTS = ("vendor/uplot.min.js", "pictures.js")


def report_page(report: Part) -> str:
    """The file's text, with its styles and scripts inside.

    Its policy allows exactly those, by their digests: markup in a name could run nothing.
    """
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=ReportView.of(report),
            policy=policy(),
            styles=[_inline(name) for name in STYLES],
            scripts=[_inline(name) for name in SCRIPTS],
        )
    )


@cache
def policy() -> str:
    """The Content-Security-Policy of the file, and of the answer that carries it."""
    return "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            "script-src " + " ".join(map(_digest, SCRIPTS)),
            "style-src " + " ".join(map(_digest, STYLES)),
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


@cache
def _environment() -> Environment:
    return environment()


def _inline(name: str) -> Markup:
    """A file of ours, which is not escaped; it cannot end the element that it is in."""
    text = read_asset(name).decode()
    if "</script" in text.lower() or "</style" in text.lower():
        raise ValueError(f"{name} would end its element")
    return Markup(text)  # noqa: S704 - no text of a stranger


def _digest(name: str) -> str:
    digest = hashlib.sha256(_inline(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
