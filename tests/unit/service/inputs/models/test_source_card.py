"""What a source says of its licence and its bases is read as it says it, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from service.inputs.models.source_card import (
    MAX_BASES,
    MAX_FRONT_BYTES,
    SourceCard,
    of_gguf,
    of_readme,
    read_source_card,
)
from tests.fixtures.gguf_files import WHOLE, header

README = """---
library_name: transformers
license: other
license_name: llama3.2
license_link: https://example.org/LICENSE
base_model:
- team/base
- merged
tags: [a]
---

# A model
"""
CARD = SourceCard(None, "other", "llama3.2", "https://example.org/LICENSE", ("team/base", "merged"))


@pytest.mark.parametrize("text", [README, README.replace("\n", "\r\n"), "\n" + README])
def test_a_readme_says_what_the_hub_s_library_reads_in_it(text: str) -> None:
    assert of_readme(text) == CARD
    data: Any = ModelCard(text.replace("\r\n", "\n")).data
    assert (data.license, data.license_name, data.license_link) == (
        CARD.license,
        CARD.license_name,
        CARD.license_link,
    )
    assert data.base_model == [*CARD.base_model]


@pytest.mark.parametrize(
    ("front", "card"),
    [
        ("license: apache-2.0", SourceCard(license="apache-2.0")),
        ("base_model: team/base", SourceCard(base_model=("team/base",))),
        ("license: [mit, apache-2.0]", SourceCard()),
        ("license: no", SourceCard()),
        ("license: 3.0", SourceCard()),
        ("license: 2026-13-45", SourceCard()),
        ('license: "a\\nb"', SourceCard()),
        (f"license: {'x' * 201}", SourceCard()),
        ("base_model: [../up, 'a b', <b>, t/base, 7, t/base]", SourceCard(base_model=("t/base",))),
        ("base_model: {a: b}", SourceCard()),
        ("license: mit: x", SourceCard()),
        ("- license", SourceCard()),
        ("[" * 5000, SourceCard()),
        ("license: !!python/object/apply:os.getcwd []", SourceCard()),
    ],
)
def test_what_is_in_no_form_of_the_hub_s_is_left_out(front: str, card: SourceCard) -> None:
    assert of_readme(f"---\n{front}\n---\n") == card


@pytest.mark.parametrize(
    "text", ["", "# A model\nlicense: mit", "---\nlicense: mit\n", "x\n---\nlicense: mit\n---\n"]
)
def test_without_front_matter_nothing_is_known(text: str) -> None:
    assert of_readme(text) == SourceCard()


@given(st.text())
def test_no_readme_breaks_a_job(text: str) -> None:
    of_readme(f"---\n{text}\n---\n")


def test_a_gguf_file_says_it_in_its_metadata(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    metadata = {
        **WHOLE,
        "general.name": "Smollm2 135M",
        "general.license": "other",
        "general.license.name": "own",
        "general.license.link": "https://example.org",
        "general.base_model.count": 3,
        "general.base_model.0.repo_url": "https://huggingface.co/team/base",
        "general.base_model.1.name": "Only A Name",
        "general.base_model.2.repo_url": "https://elsewhere.org/team/base",
    }
    file.write_bytes(header(metadata))
    assert read_source_card(file) == SourceCard(
        "Smollm2 135M", "other", "own", "https://example.org", ("team/base",)
    )
    file.write_bytes(header(WHOLE))
    assert read_source_card(file) == SourceCard()


@pytest.mark.parametrize("count", [2**40, -1, "many", True])
def test_a_crafted_count_of_bases_takes_no_time(count: Any) -> None:
    urls = {
        f"general.base_model.{number}.repo_url": f"https://huggingface.co/a/{number}"
        for number in range(100)
    }
    assert len(of_gguf(urls | {"general.base_model.count": count}).base_model) <= MAX_BASES


def test_a_folder_may_have_no_readme_or_a_long_one(tmp_path: Path) -> None:
    assert read_source_card(tmp_path) == SourceCard()
    (tmp_path / "README.md").write_text(README + MAX_FRONT_BYTES * "x")
    assert read_source_card(tmp_path) == CARD
    (tmp_path / "README.md").write_bytes(b"---\nx: " + MAX_FRONT_BYTES * b"x" + b"\n---\n")
    assert read_source_card(tmp_path) == SourceCard()
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff\xfe")
    assert read_source_card(tmp_path) == SourceCard(license="mit")


def test_only_what_is_known_goes_into_a_report() -> None:
    assert SourceCard().known() == {}
    assert CARD.known() == {
        "license": "other",
        "license_name": "llama3.2",
        "license_link": "https://example.org/LICENSE",
        "base_model": ["team/base", "merged"],
    }
