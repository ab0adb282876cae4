"""The sandbox contains programs that attack it, and leaves no process and no file behind."""

from __future__ import annotations

import gzip
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench import demo_data
from service.errors import SandboxUnavailable
from workers.evaluation import sandbox
from workers.evaluation.confined import ALLOWED, AUDIT_ARCH, WRITING_FLAGS, filter_program
from workers.evaluation.sandbox import Limits, check_sandbox, passes

LIMITS = Limits(20.0, 2**29)
SHORT = Limits(1.0, 2**29)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = psutil.Process().children(recursive=True)
    yield
    assert psutil.Process().children(recursive=True) == before
    assert list(scratch.iterdir()) == []


def test_this_machine_has_a_sandbox() -> None:
    check_sandbox()


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("assert sorted([3, 1, 2]) == [1, 2, 3]", True),
        ("import collections, decimal, hashlib, heapq, itertools, math, random, re, string", True),
        ("def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nassert f(15) == 610", True),
        ("print('x' * 10_000_000)\nimport sys\nprint('y', file=sys.stderr)", True),
        ("assert False", False),
        ("this is no python", False),
        ("def f(x: Missing):\n    pass\nassert f.__annotations__", False),
        (
            "from __future__ import annotations\ndef f(x: Missing): pass\nassert f.__annotations__",
            True,
        ),
        ("'\ud800'", False),
        ("import sys\nsys.exit(0)", False),
        ("import os\nos._exit(0)", False),
        ("raise KeyboardInterrupt", False),
        ("input()", False),
        ("def f():\n    f()\nf()", False),
        ("import ctypes\nctypes.string_at(0)", False),
    ],
    ids=[
        "right", "imports", "recursion", "output", "wrong", "syntax", "unknown annotation",
        "annotations as text", "surrogate", "exit", "hard exit", "interrupt", "input",
        "endless recursion", "segmentation fault",
    ],
)  # fmt: skip
def test_a_program_passes_if_it_runs_to_its_end(program: str, passed: bool) -> None:
    assert passes(program, LIMITS) is passed


def refused(attack: str, error: str = "PermissionError") -> str:
    """A program that passes if what it tries is refused."""
    body = "\n".join(f"    {line}" for line in attack.splitlines())
    return f"try:\n{body}\nexcept {error}:\n    pass\nelse:\n    raise AssertionError"


def system_call(number: int, *arguments: int) -> str:
    """A program that passes if the kernel refuses a system call."""
    given = ", ".join(map(str, (number, *arguments)))
    return (
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"assert libc.syscall({given}) == -1\nassert ctypes.get_errno() == errno.EPERM"
    )


ATTACKS = {
    "fork": refused("import os\nos.fork()"),
    "process": refused("import subprocess\nsubprocess.run(['/bin/true'])"),
    "exec": refused("import os\nos.execv('/bin/true', ['true'])"),
    "thread": refused("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
    "kill parent": refused("import os\nos.kill(os.getppid(), 9)"),
    "kill all": refused("import os\nos.kill(-1, 9)"),
    "own limits": refused("import resource\nresource.setrlimit(8, (1, 1))", "ValueError"),
    "memory": refused("held = bytearray(2**31)", "MemoryError"),
    "list folder": refused("import os\nos.listdir('/')"),
    "password file": refused("open('/etc/passwd')"),
    "own environment": refused("open('/proc/self/environ')"),
    "parent's environment": refused("import os\nopen(f'/proc/{os.getppid()}/environ')"),
    "parent's memory": refused("import os\nopen(f'/proc/{os.getppid()}/mem')"),
    "shared memory": refused("open('/dev/shm/attack', 'w')"),
    "new file": refused("open('/tmp/attack', 'w')"),
    "new folder": refused("import os\nos.mkdir('/tmp/attack')"),
    "unix socket": refused("import socket\nsocket.socket(socket.AF_UNIX)"),
    "udp": refused("import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"),
    "environment": "import os\nassert not set(os.environ) - {'LC_CTYPE'}",
    "other packages": refused("import torch", "ImportError"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_refused(attack: str) -> None:
    assert passes(attack, LIMITS)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
@pytest.mark.parametrize(
    "number",
    [41, 53, 56, 57, 58, 59, 62, 72, 85, 87, 101, 157, 160, 165, 272, 302, 310, 319, 425, 435, 437],
    ids=[
        "socket", "socketpair", "clone", "fork", "vfork", "execve", "kill", "fcntl", "creat",
        "unlink", "ptrace", "prctl", "setrlimit", "mount", "unshare", "prlimit64",
        "process_vm_readv", "memfd_create", "io_uring_setup", "clone3", "openat2",
    ],
)  # fmt: skip
def test_a_system_call_is_refused_by_number(number: int) -> None:
    assert passes(system_call(number, 0, 0, 0, 0, 0), LIMITS)


def test_no_connection_reaches_a_listening_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        attack = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        assert passes(refused(attack), LIMITS)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("flags", ["O_WRONLY", "O_RDWR", "O_RDONLY | os.O_TRUNC", "O_RDONLY"])
def test_files_of_the_machine_are_neither_read_nor_changed(tmp_path: Path, flags: str) -> None:
    file = tmp_path / "secret.txt"
    file.write_text("secret")
    assert passes(refused(f"import os\nos.open({str(file)!r}, os.{flags})"), LIMITS)
    assert passes(refused(f"import os\nos.unlink({str(file)!r})"), LIMITS)
    assert file.read_text() == "secret"


def test_libraries_are_read_and_not_changed() -> None:
    program = "import os\nassert os.path.isfile(os.__file__)\nopen(os.__file__).close()\n"
    assert passes(program + refused("open(os.__file__, 'r+')"), LIMITS)
    assert passes(program + refused("os.open(os.__file__, os.O_TRUNC)"), LIMITS)


def test_secrets_of_this_process_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENPRESS_S3_SECRET_ACCESS_KEY", "secret")
    assert passes("import os\nassert 'secret' not in str(os.environ)", LIMITS)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import signal\nfor n in range(1, 31):\n"
        "    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "import os\nwhile True:\n    for fd in range(3, 10):\n"
        "        try: os.write(fd, bytes(2**20))\n        except OSError: pass",
        "while True: print('x' * 2**20)",
        "try:\n    while True: pass\nfinally:\n    while True: pass",
    ],
    ids=["loop", "sleep", "signals ignored", "pipe flooded", "output", "finally"],
)
def test_a_program_that_does_not_end_is_ended(program: str) -> None:
    assert passes(program, SHORT) is False


def test_no_program_can_make_the_sandbox_look_broken() -> None:
    program = (
        "import os\nfor fd in range(10):\n    try: os.write(fd, b'x')\n    except OSError: pass"
    )
    assert passes(f"{program}\nos._exit(1)", LIMITS) is False


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("= 444, 445, 446", "= 9999, 445, 446", "not implemented"),
        ("    _read_only(READABLE)\n", "", "reading the root folder was not refused"),
        ("    _allow_calls(filter_program(machine))\n", "", "opening a socket was not refused"),
        ("machine = platform.machine()", "machine = 'pdp11'", "of pdp11 are not known"),
    ],
    ids=["no landlock", "landlock without effect", "seccomp without effect", "machine"],
)
def test_nothing_runs_where_it_cannot_be_confined(
    before: str, after: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sandbox.CONFINED.read_text()
    assert before in source
    broken = tmp_path / "confined.py"
    broken.write_text(source.replace(before, after, 1))
    monkeypatch.setattr(sandbox, "CONFINED", broken)
    with pytest.raises(SandboxUnavailable, match=reason):
        passes("", LIMITS)
    with pytest.raises(SandboxUnavailable):
        check_sandbox()


def verdict(program: list[tuple[int, int, int, int]], arch: int, number: int, *words: int) -> int:
    """What a seccomp filter answers: a small interpreter of classic BPF."""
    data = {0: number, 4: arch} | {16 + 8 * i: word for i, word in enumerate(words)}
    position, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        match code:
            case 0x20:
                accumulator = data.get(operand, 0)
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x45:
                position += if_true if accumulator & operand else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(code)


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_the_filter_allows_what_it_names_and_nothing_else(machine: str) -> None:
    program, arch = filter_program(machine), AUDIT_ARCH[machine]
    column = list(AUDIT_ARCH).index(machine)
    opening = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}[machine]
    allowed = {numbers[column] for numbers in ALLOWED.values()} - {None} | set(opening)
    x32 = {number | 0x40000000 for number in allowed if number is not None}
    answers = {number: verdict(program, arch, number) for number in [*range(600), *x32]}
    assert {number for number, answer in answers.items() if answer == 0x7FFF0000} == allowed
    assert {answer for n, answer in answers.items() if n not in allowed} == {0x00050001}
    assert verdict(program, 0x40000003, 1) == 0x80000000  # a system call of another architecture
    for number, argument in opening.items():
        for bit in (1 << n for n in range(32) if WRITING_FLAGS >> n & 1):
            words = [bit if position == argument else 0 for position in range(6)]
            assert verdict(program, arch, number, *words) == 0x00050001


@pytest.mark.parametrize("number", range(0, demo_data.PROBLEM_COUNT, 40))
def test_canonical_solutions_pass_in_it(number: int) -> None:
    """A sample; the integration tests run all."""
    with gzip.open(demo_data.problems_file(), "rt", encoding="utf-8") as lines:
        problem = json.loads(list(lines)[number])
    program = problem["prompt"] + problem["canonical_solution"] + problem["test"]
    assert passes(f"{program}\ncheck({problem['entry_point']})", LIMITS)
    wrong = f"{problem['prompt']}    return None\n{problem['test']}"
    assert not passes(f"{wrong}\ncheck({problem['entry_point']})", LIMITS)
