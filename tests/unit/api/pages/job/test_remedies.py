"""What a user can do about an error."""

from __future__ import annotations

import re

from api.pages.job.remedies import REMEDIES, remedy
from api.pages.rendering import coded
from service import errors
from service.errors import EigenpressError
from service.settings import Settings


def _codes() -> set[str]:
    kinds = (each for each in vars(errors).values() if isinstance(each, type))
    return {each.code for each in kinds if issubclass(each, EigenpressError)}


def test_every_code_is_of_an_error() -> None:
    assert REMEDIES.keys() - _codes() == set()


def test_each_is_a_plain_sentence() -> None:
    for code, text in REMEDIES.items():
        assert text.endswith("."), code
        assert text.count("`") % 2 == 0, code
        assert "`" not in coded(text), code


def test_settings_that_they_name_exist() -> None:
    named = {name for text in REMEDIES.values() for name in re.findall(r"EIGENPRESS_(\w+)", text)}
    assert named
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


def test_a_code_without_a_common_answer_has_none() -> None:
    assert remedy("internal_error") is None
