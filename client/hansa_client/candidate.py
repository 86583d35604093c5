"""Scores with a TFLite file that nobody at this merchant vouches for: the coordinator's candidate, before and after it
was signed.

The file is run by a child process that has no environment, no network, no keys and no files, and that gave up all of
what an operating system offers but computing (jail.py). File and inputs go to it through one pipe, logits come back
through another, and are believed only as what they claim to be: finite float32, one a row. Whatever else happens (a
file that is no network, or one for other inputs, a crash, a hang, too much memory, too long an answer) is a
MerchantError of one line, and nothing of the child is left.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.candidate_process import HEADER, LOGITS, REFUSED
from hansa_common.errors import MerchantError
from hansa_common.features import Inputs

_CHUNK_BYTES: Final = 1 << 20
_MAX_SHOWN_CHARS: Final = 300
_SECONDS_TO_END: Final = 5.0


@dataclass(frozen=True)
class Limits:
    """What a candidate may take: `seconds` and `seconds_per_million_rows` of wall clock and of computing, but never
    more than `most_seconds`; and memory beside its libraries and inputs.
    """

    seconds: float = 60.0
    seconds_per_million_rows: float = 120.0
    most_seconds: float = math.inf
    memory_bytes: int = 2**30

    def seconds_for(self, num_rows: int) -> float:
        """Seconds for that many rows."""
        return min(self.seconds + self.seconds_per_million_rows * num_rows / 1e6, self.most_seconds)


DEFAULT_LIMITS: Final = Limits()


def candidate_logits(
    content: bytes, inputs: Inputs, *, name: str = "the candidate", limits: Limits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Logits (rows,) of a TFLite file of a model with inputs like these; `name` is what messages call the file.

    Raises:
        MerchantError: the file did not give one finite logit a row within its limits; says why.
    """
    seconds = limits.seconds_for(len(inputs))
    header = HEADER.pack(
        len(content), len(inputs), inputs.dense.shape[1], inputs.ids.shape[1], limits.memory_bytes, math.ceil(seconds)
    )
    parts = [memoryview(header), memoryview(content), _bytes(inputs.dense), _bytes(inputs.ids)]
    # Room for a line where there are hardly any rows.
    max_bytes = 1 + max(4 * len(inputs), 4 * _MAX_SHOWN_CHARS)
    return _believed(_ask(parts, max_bytes, seconds, name), len(inputs), name)


@dataclass(frozen=True)
class _Answer:
    content: bytes
    status: int | None


def _ask(parts: list[memoryview], max_bytes: int, seconds: float, name: str) -> _Answer:
    """What a child says to these parts, at most a little more than max_bytes of it."""
    deadline = time.monotonic() + seconds
    child = subprocess.Popen(
        # Isolated: no PYTHONPATH, no user's packages, nothing of the folder it is started in.
        [sys.executable, "-I", "-m", "hansa_client.candidate_process"],
        env={},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    given, told = _pipes(child)
    writer = threading.Thread(target=_write, args=(given, parts), daemon=True)
    writer.start()
    try:
        answer = _read(told, max_bytes, deadline)
        if answer is None:
            raise MerchantError(f"{name} did not answer within {seconds:.0f} seconds and was stopped; do not use it")
        status = _status(child)
    finally:
        _kill(child)
        child.wait()
        # Before the pipe is closed: its number could then be another file's, and the thread would write there.
        writer.join()
        given.close()
        told.close()
    return _Answer(answer, status)


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if child.stdin is None or child.stdout is None:
        raise ValueError("the child was started without pipes")
    return child.stdin, child.stdout


def _write(pipe: IO[bytes], parts: list[memoryview]) -> None:
    # A child that died has closed its end; how it died is told where its answer is read.
    with suppress(BrokenPipeError):
        for part in parts:
            rest = part
            while rest:
                rest = rest[os.write(pipe.fileno(), rest[:_CHUNK_BYTES]) :]


def _read(pipe: IO[bytes], max_bytes: int, deadline: float) -> bytes | None:
    """All that comes, or the first of it where it is more than max_bytes; None where it does not end in time."""
    found = bytearray()
    while len(found) <= max_bytes:
        readable, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0.0))
        if not readable:
            return None
        chunk = os.read(pipe.fileno(), _CHUNK_BYTES)
        if not chunk:
            break
        found += chunk
    return bytes(found)


def _status(child: subprocess.Popen[bytes]) -> int | None:
    """The child's exit status; None if it said its last word and lives on."""
    try:
        return child.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        return None


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _believed(answer: _Answer, num_rows: int, name: str) -> NDArray[np.float32]:
    kind, content = answer.content[:1], answer.content[1:]
    if kind == REFUSED:
        told = "".join(letter for letter in content.decode("ascii", errors="replace") if letter.isprintable())
        raise MerchantError(f"{name} cannot be used: {told[:_MAX_SHOWN_CHARS]}")
    if answer.status is not None and answer.status != 0:
        raise MerchantError(f"{name} made the process that tried it {_end(answer.status)}; do not use it")
    if kind != LOGITS or len(content) != 4 * num_rows:
        raise MerchantError(
            f"{name} gave {len(content):,} bytes for {num_rows:,} rows, not a float32 each; do not use it"
        )
    logits = np.frombuffer(content, "<f4").astype(np.float32)
    if not np.isfinite(logits).all():
        raise MerchantError(f"{name} gave scores that are not finite; do not use it")
    return logits


def _end(status: int) -> str:
    if status >= 0:
        return f"end with status {status}"
    try:
        return f"end by {signal.Signals(-status).name}"
    except ValueError:
        return f"end by signal {-status}"


def _bytes(array: NDArray[np.float32] | NDArray[np.int32]) -> memoryview:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return memoryview(little.view(np.uint8).reshape(-1).data)
