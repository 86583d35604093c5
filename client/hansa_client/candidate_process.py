"""The process that candidate.py starts to run a TFLite file that nobody vouches for.

It loads its libraries and reads all of its standard input, then gives up everything (jail.py), and only then lets
native code look at the file. The answer goes to standard output: a byte for its kind, then logits or one line of text.

standard input   sizes of what follows as eight-byte integers (_HEADER): file, rows, num_dense, num_embedded, and the
                 allowed memory and CPU seconds; the file's bytes; dense inputs float32; ids int32
"""

from __future__ import annotations

import base64
import struct
import sys
from typing import BinaryIO, Final

from hansa_client import jail

HEADER: Final = struct.Struct("<6Q")
LOGITS: Final = b"L"
REFUSED: Final = b"R"
# A TFLite file of ours, y = x + x: when they first run one, the libraries look at the machine (/proc/cpuinfo), and
# choose other arithmetic where they may not.
DOUBLING: Final = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAYAAAA4AAAAAMAAAABAAAABAAAACj///8BAAAAEAAAAAwAFAAQAAwACAAE"
    "AAwAAAAQAAAAUAAAAFQAAABYAAAAAQAAABQAAAAAAA4AFAAAABAADAALAAQADgAAABAAAAAAAAALDAAAABAAAACA////AQAAAAEA"
    "AAACAAAAAAAAAAAAAAABAAAAAQAAAAEAAAAAAAAAAgAAADAAAAAEAAAA5P///wgAAAAMAAAAAQAAAHkAAAABAAAAAQAAAAwADAAI"
    "AAAAAAAEAAwAAAAIAAAADAAAAAEAAAB4AAAAAQAAAAEAAAABAAAACAAAAAQABAAEAAAA"
)


def main() -> None:
    """Answer the one question on standard input."""
    jail.one_thread_only()
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    from hansa_common.errors import BundleError
    from hansa_common.features import Inputs
    from hansa_common.tflite import TfliteNetwork

    file_size, num_rows, num_dense, num_embedded, memory_bytes, cpu_seconds = HEADER.unpack(_read(HEADER.size))
    content = _read(file_size)
    dense = np.frombuffer(_read(4 * num_rows * num_dense), "<f4").reshape(num_rows, num_dense)
    ids = np.frombuffer(_read(4 * num_rows * num_embedded), "<i4").reshape(num_rows, num_embedded)
    out = sys.stdout.buffer
    first = Interpreter(model_content=DOUBLING, num_threads=1)
    first.allocate_tensors()
    first.invoke()
    jail.enter(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds)
    try:
        logits = TfliteNetwork(content, num_dense, num_embedded).logits(Inputs(dense, ids))
    except BundleError as error:
        _answer(out, REFUSED, str(error).encode(errors="replace"))
    else:
        _answer(out, LOGITS, logits.astype("<f4").tobytes())


def _read(size: int) -> bytes:
    content = sys.stdin.buffer.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content)} of {size} bytes came")
    return content


def _answer(out: BinaryIO, kind: bytes, content: bytes) -> None:
    out.write(kind + content)
    out.flush()


if __name__ == "__main__":
    main()
