"""The ratios of speeds, and the page, from artificial times; a cost of milliseconds."""

from __future__ import annotations

import pytest

from bench.serving import SHORT, Load, Speed, measure, page, rank_that_keeps, rows
from workers.compression.shapes import LinearLayer


class Timed:
    """A model that takes so many seconds for every token that it reads and writes."""

    def __init__(self, reading: float, writing: float) -> None:
        self._reading, self._writing = reading, writing

    def seconds(self, prompt: int, generated: int) -> float:
        return prompt * self._reading + generated * self._writing


LOAD = Load(prompt=512, decoded=64)
SPEEDS = {
    "dense": Speed(decode=(10.0, 20.0, 30.0), prefill=(1000.0, 4000.0, 2000.0)),
    "keep-0.6": Speed(decode=(25.0, 5.0, 30.0), prefill=(3000.0, 3000.0, 3000.0)),
}


def test_decoding_is_timed_without_the_prompt() -> None:
    speeds = measure({"dense": Timed(0.001, 0.5)}, LOAD, repetitions=3)  # type: ignore[dict-item]

    assert [round(speed, 9) for speed in speeds["dense"].decode] == [2.0] * 3
    assert [round(speed, 6) for speed in speeds["dense"].prefill] == [round(512 / 1.012, 6)] * 3


def test_ratios_are_those_of_medians() -> None:
    assert rows(SPEEDS) == [
        ("dense", "20", "1.00", "2,000", "1.00"),
        ("keep-0.6", "25", "1.25", "3,000", "1.50"),
    ]


def test_the_page_has_a_table_for_each_engine_and_says_what_was_asked() -> None:
    computer = {"device": "a processor", "cores": "2", "torch": "2.13"}
    text = page({"a model": {"vllm": SPEEDS, "transformers": SPEEDS}}, LOAD, 5, computer)

    assert text.count("| keep-0.6 | 25 | 1.25 | 3,000 | 1.50 |") == 2
    assert "## a model" in text
    assert f"64 tokens after a prompt of {SHORT}" in " ".join(text.split())


@pytest.mark.parametrize("keep", [0.8, 0.6])
@pytest.mark.parametrize("sides", [(4096, 4096), (11008, 4096), (4096, 11008)])
def test_a_random_layer_has_the_share_of_parameters(sides: tuple[int, int], keep: float) -> None:
    layer = LinearLayer("layer", *sides, has_bias=False)
    rank = rank_that_keeps(layer, keep)
    assert rank % 8 == 0
    assert rank * (sum(sides) - rank) <= keep * layer.parameters < (rank + 8) * (sum(sides) - rank)
