from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import demo_data


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x = 1\n")


def test_the_library_has_neither_tests_nor_tables_nor_installed_packages(tmp_path: Path) -> None:
    wanted = ["abc.py", "email/message.py", "unittest/case.py"]
    unwanted = [
        "test/test_abc.py",
        "lib2to3/tests/test_all.py",
        "idlelib/idle_test/test_run.py",
        "encodings/cp1252.py",
        "site-packages/numpy/core.py",
        "dist-packages/apt.py",
        "LICENSE.txt",
    ]
    for name in wanted + unwanted:
        write(tmp_path / name)

    found = [str(path.relative_to(tmp_path)) for path in demo_data.library_sources(tmp_path)]

    assert found == wanted


def test_the_copy_of_the_library_keeps_its_folders(tmp_path: Path) -> None:
    count = demo_data.copy_standard_library(tmp_path)

    assert count == len(list(tmp_path.rglob("*.py"))) > 100
    assert (tmp_path / "json" / "decoder.py").read_bytes().startswith(b'"""')


def test_a_problem_is_its_prompt_followed_by_its_solution(tmp_path: Path) -> None:
    target = tmp_path / "problems.jsonl"

    demo_data.write_problems(target)

    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(rows) == demo_data.PROBLEM_COUNT
    assert all("def " in row["text"] and "return" in row["text"] for row in rows)


@pytest.mark.parametrize("count", [1, 64, demo_data.PROBLEM_COUNT])
def test_a_part_of_the_problems_is_spread_over_all_of_them(tmp_path: Path, count: int) -> None:
    demo_data.write_problems(target := tmp_path / "problems.jsonl", count)

    rows = [json.loads(line) for line in target.read_text().splitlines()]
    numbers = [int(row["id"].split("/")[1]) for row in rows]
    gaps = {b - a for a, b in zip(numbers, [*numbers[1:], demo_data.PROBLEM_COUNT], strict=True)}
    assert numbers[0] == 0
    assert len(numbers) == count
    assert max(gaps) - min(gaps) <= 1


def test_the_model_is_a_gguf_file() -> None:
    with demo_data.model_file().open("rb") as model:
        assert model.read(4) == b"GGUF"
