"""Reads, checks and tokenizes the problems of a job's tasks, once for all its models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from service.domain.credentials import NO_CREDENTIALS, Credentials
from service.domain.spec.evaluation import (
    MAX_PROBLEMS,
    EvaluationTask,
    LmEval,
    MultipleChoice,
    PassAt1,
)
from service.domain.spec.job import JobSpec
from service.errors import DataInvalid
from service.inputs.texts.documents import Record, read_records
from service.inputs.texts.sources import fetch_data, problem_fields
from service.settings import Settings
from workers.evaluation.harness import check_harness_tasks
from workers.text.sequences import Tokenizer, sequence_prefix

MAX_CHOICES = 64
DELIMITER = " "
"""The text between a question and a choice."""


@dataclass(frozen=True)
class Choice:
    """A question followed by one of its choices."""

    tokens: list[int]
    scored: int  # how many of them, at the end, belong to the choice
    characters: int  # of the choice


@dataclass(frozen=True)
class Question:
    """One problem of a `multiple_choice` task."""

    choices: tuple[Choice, ...]
    answer: int


@dataclass(frozen=True)
class Function:
    """One problem of a `pass_at_1` task: the beginning of a Python function, and its tests."""

    prompt: str  # without trailing blanks
    tokens: list[int]
    test: str  # defines check(candidate)
    entry_point: str

    def program(self, completion: str) -> str:
        """The program that runs to its end if the completion is correct."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"


Problem = Question | Function | str
"""A string is the name of a task of lm-eval."""


@dataclass(frozen=True)
class Exercise:
    """A task and its problems."""

    task: EvaluationTask
    problems: list[Problem]


def read_exercises(
    spec: JobSpec,
    tokenizer: Tokenizer,
    longest: int | None,
    settings: Settings,
    credentials: Credentials = NO_CREDENTIALS,
) -> list[Exercise]:
    """The problems of every task; `longest` is the model's context length in tokens.

    They are read with the tenant's credentials, except those of lm-eval.

    Raises the errors of `service.inputs.texts.sources.fetch_data`,
    `service.inputs.texts.documents.read_records` and `workers.evaluation.harness`, and DataInvalid
    for invalid or too long problems.
    """
    exercises = []
    for number, task in enumerate(spec.evaluation.tasks):
        param = f"evaluation.tasks.{number}"
        problems: list[Problem]
        match task:
            case MultipleChoice():
                read = _question_reader(task, tokenizer, longest, param)
                problems = [read(each) for each in _records(task, settings, param, credentials)]
            case PassAt1():
                reader = _function_reader(task, tokenizer, longest, param)
                problems = [reader(each) for each in _records(task, settings, param, credentials)]
            case LmEval():
                check_harness_tasks(task, settings, param)
                problems = list(task.tasks)
        exercises.append(Exercise(task, problems))
    return exercises


def _records(
    task: MultipleChoice | PassAt1, settings: Settings, param: str, credentials: Credentials
) -> Iterator[Record]:
    data = f"{param}.data"
    text = fetch_data(task.data, settings, data, credentials)
    records = read_records(text.root, text.pattern, problem_fields(task, param), data)
    wanted = list(islice(records, task.limit or MAX_PROBLEMS + 1))
    if not wanted:
        raise DataInvalid(f"There is no problem in {text.root}.", param=data)
    if len(wanted) > MAX_PROBLEMS:
        raise DataInvalid(
            f"There are more than {MAX_PROBLEMS} problems; set a limit.", param=f"{param}.limit"
        )
    yield from wanted


def _question_reader(
    task: MultipleChoice, tokenizer: Tokenizer, longest: int | None, param: str
) -> Callable[[Record], Question]:
    prefix = sequence_prefix(tokenizer)

    def read(record: Record) -> Question:
        text = record.fields[task.question_field]
        choices = record.fields[task.choices_field]
        answer = record.fields[task.answer_field]
        _check(_is_text(text), record, f"'{task.question_field}' is not text", param)
        _check(
            isinstance(choices, list)
            and 2 <= len(choices) <= MAX_CHOICES
            and all(map(_is_text, choices)),
            record,
            f"'{task.choices_field}' is not a list of 2 to {MAX_CHOICES} texts",
            param,
        )
        _check(
            type(answer) is int and 0 <= answer < len(choices),
            record,
            f"'{task.answer_field}' is not the position of a choice, counted from 0",
            param,
        )
        encoded = tuple(encode_choice(tokenizer, prefix, text, choice) for choice in choices)
        _check_length(max(len(choice.tokens) for choice in encoded), longest, record, param)
        return Question(encoded, answer)

    return read


def encode_choice(tokenizer: Tokenizer, prefix: Sequence[int], text: str, choice: str) -> Choice:
    """The tokens of a question and a choice, split where the question alone would end.

    The question's trailing blanks belong to the choice, because tokenizers join them to it.
    """
    question = text.rstrip()
    whole = tokenizer(text + DELIMITER + choice, add_special_tokens=False)["input_ids"]
    before = tokenizer(question, add_special_tokens=False)["input_ids"]
    return Choice([*prefix, *whole], max(1, len(whole) - len(before)), len(choice))


def _function_reader(
    task: PassAt1, tokenizer: Tokenizer, longest: int | None, param: str
) -> Callable[[Record], Function]:
    prefix = sequence_prefix(tokenizer)

    def read(record: Record) -> Function:
        for name in ("prompt", "entry_point", "test"):
            _check(_is_text(record.fields[name]), record, f"'{name}' is not text", param)
        fields: dict[str, Any] = dict(record.fields)
        # If a docstring ends with a newline, models tend to go on with prose instead of code.
        prompt = fields["prompt"].rstrip()
        _check(fields["entry_point"].isidentifier(), record, "'entry_point' is not a name", param)
        tokens = [*prefix, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        _check_length(len(tokens) + task.max_new_tokens, longest, record, param)
        return Function(prompt, tokens, fields["test"], fields["entry_point"])

    return read


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check(valid: bool, record: Record, problem: str, param: str) -> None:
    if not valid:
        raise DataInvalid(f"'{record.id}': {problem}.", param=f"{param}.data")


def _check_length(tokens: int, longest: int | None, record: Record, param: str) -> None:
    _check(
        longest is None or tokens <= longest,
        record,
        f"it has {tokens} tokens, but the model reads at most {longest}",
        param,
    )
