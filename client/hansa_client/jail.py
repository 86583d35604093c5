"""A process that gives up, for good, all that it does not need to compute: files, network, processes, endless memory.

`enter` comes after everything is loaded and read; what is open then (the pipes to the parent) stays open. From then on:

| what is tried                          | what stops it                                                             |
|----------------------------------------|---------------------------------------------------------------------------|
| a file, a socket, any new descriptor   | RLIMIT_NOFILE 0; the filter                                               |
| a new process or thread, another program | RLIMIT_NPROC 0 (not for root); the filter                               |
| memory, computing time                 | RLIMIT_AS (Linux), RLIMIT_CPU                                             |
| a core file that holds rows            | RLIMIT_CORE 0, not dumpable                                               |
| signals, ptrace, everything else       | the filter: it allows the calls in _ALLOWED and answers EPERM to all else |

The filter is seccomp's: Linux on x86-64 and arm64, where the kernel offers it. Elsewhere the limits stand alone, and
root could raise them again. Nothing here protects the pipes: what comes out of them is for the parent to doubt.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from pathlib import Path
from typing import Final

# Call -> its number on x86-64 and on arm64 (linux/arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h).
_ALLOWED: Final = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
}
# Machine -> the column above, the audit number of its calls (linux/audit.h), the number of seccomp itself.
_MACHINES: Final = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}

# linux/prctl.h, linux/seccomp.h, linux/filter.h
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1
_KILL_PROCESS: Final = 0x80000000
_ANSWER_EPERM: Final = 0x00050001
_ALLOW: Final = 0x7FFF0000
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_PLACE_OF_NUMBER, _PLACE_OF_MACHINE = 0, 4


def enter(*, memory_bytes: int, cpu_seconds: int) -> bool:
    """Shut this process in, whatever it is allowed to do: memory_bytes more than it has now, cpu_seconds in all.

    Returns:
        Whether the filter is in force too.
    """
    limit_resources(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds)
    return filter_calls()


def limit_resources(*, memory_bytes: int, cpu_seconds: int) -> None:
    """Set the limits, for which no privilege is needed and which none but root can raise again."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    if sys.platform == "linux":
        num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limits[resource.RLIMIT_AS] = num_pages * resource.getpagesize() + memory_bytes
    # Last: nothing can be opened after it.
    limits[resource.RLIMIT_NOFILE] = 0
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def filter_calls() -> bool:
    """Allow this process and all its threads the calls in _ALLOWED only; False where there is no such filter."""
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return False
    column, audit_number, seccomp = machine
    program = _program([numbers[column] for numbers in _ALLOWED.values()], audit_number)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are.
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Without it the kernel takes filters from root only.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    # All threads: one without the filter could be made to do what the others may not.
    return bool(libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, whole) == 0)


def _program(allowed: list[int], audit_number: int) -> bytes:
    """The filter for the kernel's packet machine: an instruction is its code, two jumps and an operand."""
    instructions = [
        (_LOAD_WORD, 0, 0, _PLACE_OF_MACHINE),
        (_JUMP_IF_EQUAL, 1, 0, audit_number),
        # Calls of another instruction set have other numbers.
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _PLACE_OF_NUMBER),
    ]
    for number in allowed:
        instructions += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    instructions.append((_RETURN, 0, 0, _ANSWER_EPERM))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def one_thread_only() -> None:
    """Before numpy is imported: keep its library from starting threads that nobody needs."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
