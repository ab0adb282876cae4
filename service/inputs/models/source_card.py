"""What a source model says of itself for the cards of what is made of it: name, licence, bases.

A folder says it in the front matter of its README.md, as the hub has it, and a GGUF file in its
metadata. Nothing is guessed: what the source does not say, or says in no form of the hub's, is
left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.errors import ModelInvalid
from service.inputs.models.files import README_NAME
from service.inputs.models.gguf_header import read_gguf_header

MAX_FRONT_BYTES = 2**16
"""Where the front matter of a README.md must end."""
MAX_BASES = 16
"""A merge has several."""
MAX_CHARACTERS = 200

HUB_ID = r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?"
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
_HUB_URL = re.compile(rf"https://(?:www\.)?(?:huggingface\.co|hf\.co)/({HUB_ID})/?")


@dataclass(frozen=True)
class SourceCard:
    """What is known; the names of the fields are those of the hub's metadata."""

    name: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: tuple[str, ...] = ()
    """Ids on the hub."""

    def known(self) -> dict[str, Any]:
        """The fields that say something, as JSON has them."""
        fields = asdict(self) | {"base_model": [*self.base_model]}
        return {name: value for name, value in fields.items() if value}


def read_source_card(path: Path) -> SourceCard:
    """The card of a model's folder or GGUF file. Raises OSError if it cannot be read."""
    if path.is_dir():
        readme = path / README_NAME
        return of_readme(_beginning(readme)) if readme.is_file() else SourceCard()
    try:
        with path.open("rb") as file:
            return of_gguf(read_gguf_header(file, path.name, "model").metadata)
    except ModelInvalid:  # the conversion says so
        return SourceCard()


def of_readme(text: str) -> SourceCard:
    """What the front matter of a README.md says."""
    said = _front_matter(text)
    bases = said.get("base_model")
    found = bases if isinstance(bases, list) else [bases]
    return SourceCard(
        license=_line(said.get("license")),
        license_name=_line(said.get("license_name")),
        license_link=_line(said.get("license_link")),
        base_model=_ids(found, lambda text: re.fullmatch(HUB_ID, text) and text),
    )


def of_gguf(metadata: Mapping[str, Any]) -> SourceCard:
    """What the metadata of a GGUF file say."""
    count = metadata.get("general.base_model.count")
    known = min(count, MAX_BASES) if isinstance(count, int) else 0
    urls = (metadata.get(f"general.base_model.{number}.repo_url") for number in range(known))
    return SourceCard(
        name=_line(metadata.get("general.name")),
        license=_line(metadata.get("general.license")),
        license_name=_line(metadata.get("general.license.name")),
        license_link=_line(metadata.get("general.license.link")),
        base_model=_ids(urls, lambda url: (found := _HUB_URL.fullmatch(url)) and found[1]),
    )


def _beginning(readme: Path) -> str:
    with readme.open("rb") as file:
        return file.read(MAX_FRONT_BYTES).decode("utf-8", "replace")


def _front_matter(text: str) -> Mapping[Any, Any]:
    import yaml  # takes a while

    found = _FRONT_MATTER.match(text.removeprefix("\ufeff"))
    if not found:
        return {}
    try:
        said = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: no date of the calendar
        return {}
    return said if isinstance(said, Mapping) else {}


def _line(value: Any) -> str | None:
    """A text of one line; None if it is none, or too long to be one."""
    if not isinstance(value, str) or not value.strip().isprintable():
        return None
    return value.strip() if 0 < len(value.strip()) <= MAX_CHARACTERS else None


def _ids(values: Any, id_of: Callable[[str], Any]) -> tuple[str, ...]:
    def found() -> Iterator[str]:
        for value in values:
            if (text := _line(value)) and (known := id_of(text)):
                yield known

    return tuple(dict.fromkeys(found()))[:MAX_BASES]
