"""What native libraries say while they load, kept back unless loading fails.

TensorFlow greets on standard error in a dozen lines before any setting of its own takes effect; whoever started a
simulation would read them before its first word.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_STDERR: Final = 2


@contextmanager
def kept_back() -> Iterator[None]:
    """Keep what is written to standard error's descriptor; say it after all if the block raises."""
    sys.stderr.flush()
    before = os.dup(_STDERR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            os.dup2(before, _STDERR)
            held.seek(0)
            os.write(_STDERR, held.read())
            raise
        finally:
            os.dup2(before, _STDERR)
            os.close(before)
