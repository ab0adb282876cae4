"""Chats become text by the model's own template."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import DataInvalid
from service.inputs.texts.rows import Chat
from tests.fixtures.models import BOS, byte_tokenizer
from workers.text.chats import chat_renderer
from workers.text.sequences import sequence_prefix

CHAT = Chat(
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi", "name": "A"}]
)
TURNS = "{% for m in messages %}[{{ m.role }}{{ m.name }}] {{ m.content }}\n{% endfor %}"
PARAM = "calibration.data.text_field"


def tokenizer(template: Any, *, adds_bos: bool = True) -> Any:
    made = byte_tokenizer(adds_bos=adds_bos)
    made.chat_template = template
    return made


def refused(template: Any) -> DataInvalid:
    with pytest.raises(DataInvalid) as caught:
        chat_renderer(tokenizer(template), PARAM)(CHAT, "rows.jsonl:7")
    assert caught.value.param == PARAM
    assert "'rows.jsonl:7'" in caught.value.detail
    return caught.value


def test_the_template_gets_every_field() -> None:
    text = chat_renderer(tokenizer(TURNS), PARAM)(CHAT, "rows.jsonl:7")
    assert text == "[user] Hello\n[assistantA] Hi\n"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_sequence_has_one_bos_if_the_model_knows_one(adds_bos: bool) -> None:
    made = tokenizer("{{ bos_token }}" + TURNS, adds_bos=adds_bos)
    text = chat_renderer(made, PARAM)(CHAT, "rows.jsonl:7")
    tokens = sequence_prefix(made) + made(text, add_special_tokens=False)["input_ids"]
    whole = made.apply_chat_template([*CHAT.messages], tokenize=True)["input_ids"]
    assert tokens == whole
    assert tokens.count(made.bos_token_id) == 1


def test_bos_in_a_message_stays() -> None:
    chat = Chat([{"role": "user", "content": BOS}])
    assert chat_renderer(tokenizer(TURNS), PARAM)(chat, "") == f"[user] {BOS}\n"


@pytest.mark.parametrize("template", [None, "", {}])
def test_a_model_without_a_template(template: Any) -> None:
    assert "has no chat template" in refused(template).detail


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{% for %}", "cannot render"),
        ("{{ messages[9].content.x }}", "cannot render"),
        ("{{ 1 / 0 }}", "division by zero"),
        ({"tool_use": TURNS}, "cannot render"),
    ],
    ids=["refuses", "syntax", "undefined", "arithmetic", "no default"],
)
def test_a_template_that_cannot_render(template: Any, said: str) -> None:
    assert said in refused(template).detail
