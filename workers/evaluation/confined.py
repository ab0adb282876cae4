"""Runs one untrusted program in this process, after giving up all rights that it must not have.

`workers.evaluation.sandbox` starts it as ``python -I -S -B confined.py``, so only the standard
library can be imported. Standard input holds the request. Standard output takes the verdict, which
is the request's token if the program ran to its end. Standard error takes the reason if the process
could not be confined. It sets, in this order: resource limits; Landlock rules, under which only
Python and the system's libraries can be read; a seccomp filter, which refuses all system calls but
a list of harmless ones.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

FILES = 32

READABLE = (
    os.path.dirname(os.__file__),  # noqa: PTH120 - no needless imports
    f"{sys.base_prefix}/lib",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/dev/null",
    "/dev/urandom",
)

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many file access rights each version of Landlock defines; later versions add none."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# The system calls for computing, reading libraries and exiting, with their numbers on x86_64 and
# aarch64. They exclude sockets, processes and threads, signals to others, ptrace, mounts, changes
# of limits, and everything that writes, creates, renames or removes a file.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "access": (21, None),
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "close": (3, 57),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "lseek": (8, 62),
    "lstat": (6, None),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "pread64": (17, 67),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "readv": (19, 65),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "sigaltstack": (131, 132),
    "stat": (4, None),
    "statx": (332, 291),
    "time": (201, None),
    "times": (100, 153),
    "uname": (63, 160),
    "write": (1, 64),
    "writev": (20, 66),
}

OPENING: dict[str, tuple[tuple[int | None, int | None], int]] = {
    "open": ((2, None), 1),
    "openat": ((257, 56), 2),
}
"""Calls allowed for reading only: their numbers, and the position of the flags argument."""
# O_PATH stays allowed, because it opens nothing. O_TMPFILE includes O_DIRECTORY, so only its own
# bit is listed.
WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0o20000000

LOAD, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050001  # SECCOMP_RET_*, REFUSE with EPERM
NUMBER_OFFSET, ARCH_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16  # in struct seccomp_data

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


class SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def main() -> NoReturn:
    """Confine this process, run the program, and return the token if it did not fail."""
    request = json.load(sys.stdin)
    verdict = os.dup(sys.stdout.fileno())
    token = request["token"].encode()
    program = request["program"]
    try:
        confine(request["cpu_seconds"], request["memory_bytes"])
    except (OSError, RuntimeError) as error:
        os.write(sys.stderr.fileno(), f"{error}".encode())
        os._exit(1)
    try:
        code = compile(program, "program", "exec", dont_inherit=True)  # not our `annotations`
        exec(code, {"__name__": "program"})  # noqa: S102
    except BaseException:  # SystemExit too: the program did not reach its end
        os._exit(1)
    os.write(verdict, token)
    os._exit(0)


def confine(cpu_seconds: int, memory_bytes: int) -> None:
    """Give up all rights but to compute. Raises OSError or RuntimeError if that fails."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        raise RuntimeError(f"the system calls of {machine} are not known")
    _limit(cpu_seconds, memory_bytes)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _read_only(READABLE)
    _allow_calls(filter_program(machine))
    _check()
    os.dup2(null, 2)


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _read_only(paths: tuple[str, ...]) -> None:
    """Deny all access to files, except reads below `paths`."""
    version = _syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    rights = (1 << FILE_RIGHTS[min(version, max(FILE_RIGHTS))]) - 1
    handled = ctypes.c_uint64(rights)
    ruleset = _syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    for path in paths:
        if os.path.exists(path):  # noqa: PTH110
            granted = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE  # noqa: PTH112
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", granted, beneath))
            _syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
            os.close(beneath)
    _syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def filter_program(machine: str) -> list[Instruction]:
    """The seccomp filter for one kind of machine, as `platform.machine` names it."""
    arch, column = AUDIT_ARCH[machine], list(AUDIT_ARCH).index(machine)
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCH_OFFSET),
        (JUMP_EQUAL, 1, 0, arch),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_OFFSET),
    ]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for numbers, argument in OPENING.values():
        if (number := numbers[column]) is not None:
            program += [
                (JUMP_EQUAL, 0, 4, number),
                (LOAD, 0, 0, ARGUMENTS_OFFSET + 8 * argument),
                (JUMP_SET, 0, 1, WRITING_FLAGS & 0xFFFFFFFF),
                (RETURN, 0, 0, REFUSE),
                (RETURN, 0, 0, ALLOW),
            ]
    return [*program, (RETURN, 0, 0, REFUSE)]


def _allow_calls(program: list[Instruction]) -> None:
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    code = ctypes.create_string_buffer(packed, len(packed))
    filters = SockFprog(len(program), ctypes.cast(code, ctypes.c_void_p))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filters))


def _check() -> None:
    """Check that the confinement works: a kernel may accept a filter and not apply it."""
    for name, attempt in (
        ("opening a socket", lambda: socket.socket()),
        ("reading the root folder", lambda: os.open("/", os.O_RDONLY)),
        ("starting a process", os.fork),
    ):
        try:
            if attempt() == 0:  # this is the child of a fork that was not refused
                os._exit(1)
        except PermissionError:
            continue
        raise RuntimeError(f"{name} was not refused")


def _prctl(option: int, *arguments: Any) -> None:
    words = [*arguments, *[0] * (4 - len(arguments))]
    long = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in words]
    if LIBC.prctl(option, *long) != 0:
        raise _error(f"prctl {option}")


def _syscall(number: int, *arguments: Any) -> int:
    LIBC.syscall.restype = ctypes.c_long
    long = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = LIBC.syscall(ctypes.c_long(number), *long)
    if result < 0:
        raise _error(f"system call {number}")
    return result


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
