"""Messages that somebody made by hand: all of them are refused, with MessageError and nothing else."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from hansa_common.errors import MessageError
from hansa_common.messages import (
    MAX_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    EvaluateReply,
    RoundOrder,
    RoundReply,
    SharedMetrics,
    StatisticsReply,
    decode,
    encode,
)
from hansa_common.record_types import MAX_COHORT


def example_order(**changes):
    values = {
        "run_id": "run-1",
        "recipient": "alpha",
        "fingerprint": "a" * 64,
        "sequence": 4,
        "deadline_seconds": 60.0,
        "round": 3,
        "plan": 0,
        "cohort": ("alpha", "béta"),
        "preprocessing": '{"a":1}',
        "weights": np.arange(6, dtype=np.float32),
        "control": np.arange(6, dtype=np.float32) / 7,
        "included": "b" * 64,
    }
    return RoundOrder(**{**values, **changes})


def example_reply(**changes):
    values = {
        "merchant": "alpha",
        "order_hash": "c" * 64,
        "round": 3,
        "num_examples": 400,
        "update": np.full(3, -0.5, np.float32),
        "control_delta": np.zeros(0, np.float32),
        "validation": np.array([1, 2**40, 3]),
        "train_loss": 0.25,
    }
    return RoundReply(**{**values, **changes})


def example_figures(**changes):
    values = {"merchant": "alpha", "order_hash": "c" * 64, "histogram": np.array([1, 2])}
    figures = {"num_test_rows": 40, "roc_auc": 0.9, "pr_auc": 0.5, **changes}
    return EvaluateReply(**values, metrics=SharedMetrics(**figures))


EXAMPLES = [example_order(), example_reply(), example_figures()]


@pytest.mark.parametrize("record", EXAMPLES)
def test_every_truncation_is_refused(wire, record):
    message = encode(record)
    for size in range(len(message)):
        wire.refused(message[:size])


@pytest.mark.parametrize("record", EXAMPLES)
def test_appended_bytes_are_refused(wire, record):
    for more in (b"\0", b" ", b"\n", bytes(4), bytes(8), encode(EXAMPLES[0])):
        wire.refused(encode(record) + more)


@pytest.mark.parametrize("record", EXAMPLES)
def test_every_flipped_bit_before_the_header_is_refused(wire, record):
    message = encode(record)
    for bit in range(8 * wire.prefix.size):
        wire.refused(flipped(message, bit))


@pytest.mark.parametrize("record", EXAMPLES)
def test_flipped_bit_in_the_header_is_refused_or_says_something_else_canonically(wire, record):
    message = encode(record)
    body = len(wire.parts(message)[1])
    for bit in range(8 * wire.prefix.size, 8 * (len(message) - body)):
        wire.accepted_as_written_or_refused(flipped(message, bit))


def flipped(message, bit):
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


REMOVED = object()
WRONG_HEADERS = {
    ("fields", "sequence"): [0, -1, 2**53 + 1, 10**400, 1.0, "4", True, None],
    ("fields", "deadline_seconds"): [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e7, 10**400, "60.0", 60, None],
    ("fields", "round"): [-1, 1_000_001, 10**400, "3", 3.0, True, None, [3], REMOVED],
    ("fields", "fingerprint"): ["A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "", 1],
    ("fields", "included"): ["b", "b" * 63, "b" * 64 + "\n", None],
    ("fields", "recipient"): ["", "a" * 121, "a\nb", "\x1b[2J", "\x9b2J", "a\x7f", None, {}],
    ("fields", "cohort"): ["alpha", [1], [[]], None, {"alpha": 1}, [""], ["a"] * (MAX_COHORT + 1)],
    ("fields", "preprocessing"): [None, 1, {}],
    ("fields", "weights"): [[1.0], None],
    ("fields", "another"): [1],
    ("fields", "KIND"): ["round"],
    ("lengths", "weights"): [5, 7, -1, -6, 2**40, 2**70, 6.0, "6", True, None, [6], REMOVED],
    ("lengths", "another"): [0],
    ("lengths", "round"): [0],
    (None, "kind"): ["evaluate", "rounds", "", "Round", None, 3, ["round"], {}, REMOVED],
    (None, "fields"): [None, [], "x", 1, REMOVED],
    (None, "lengths"): [None, [], "x", 1, REMOVED],
    (None, "version"): [1],
}


@pytest.mark.parametrize("place", WRONG_HEADERS)
def test_round_order_with_a_wrong_header_is_refused(wire, place):
    section, key = place
    for value in WRONG_HEADERS[place]:
        header, body = wire.parts(encode(example_order()))
        target = header if section is None else header[section]
        target[key] = value
        if value is REMOVED:
            del target[key]
        wire.refused(wire.framed(header, body))


def test_lengths_that_add_up_with_a_negative_one_are_refused(wire):
    header, body = wire.parts(encode(example_order()))
    header["lengths"].update(weights=13, control=-1)
    wire.refused(wire.framed(header, body), "out of bounds")


@pytest.mark.parametrize("loss", ["NaN", "Infinity", "-Infinity", "1e999", "-0.0", "0", '"NaN"', "null", "true"])
def test_loss_that_is_no_finite_number_in_its_one_spelling_is_refused(wire, loss):
    header, body = wire.parts(encode(example_reply()))
    forged = wire.canonical(header).replace(b'"train_loss":0.25', b'"train_loss":' + loss.encode())
    assert forged != wire.canonical(header)
    wire.refused(wire.framed(forged, body))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_test_rows", 0),
        ("num_test_rows", -(10**4000)),
        ("num_test_rows", 2**30 + 1),
        ("roc_auc", np.nan),
        ("pr_auc", np.inf),
        ("pr_auc", -0.0),
        ("pr_auc", 1),
        ("another", 1),
    ],
)
def test_wrong_shared_figures_are_refused(wire, key, value):
    header, body = wire.parts(encode(example_figures()))
    header["fields"]["metrics"][key] = value
    wire.refused(wire.framed(header, body))


# JSON that says the same as the canonical header, or nearly, and is not what `encode` writes: from -> to.
RESPELLINGS = {
    "space": (b'"round":3', b'"round": 3'),
    "space before": (b'{"fields"', b' {"fields"'),
    "line after": (b'"weights":6}}', b'"weights":6}}\n'),
    "comment": (b'"weights":6}}', b'"weights":6}}//'),
    "key order": (b'"plan":0,"preprocessing":""', b'"preprocessing":"","plan":0'),
    "escape": (b"run-1", b"run\\u002d1"),
    "escape of a letter": ("é".encode(), b"\\u00e9"),
    "latin-1": ("é".encode(), b"\xe9"),
    "byte order mark": (b'{"fields"', b'\xef\xbb\xbf{"fields"'),
    "duplicated key": (b'"round":3', b'"round":3,"round":3'),
    "duplicated section": (b'{"fields"', b'{"fields":{},"fields"'),
    "number as text": (b'"round":3', b'"round":"3"'),
    "float for a whole number": (b'"round":3', b'"round":3.0'),
    "exponent for a whole number": (b'"round":3', b'"round":3e0'),
    "exponent": (b"60.0", b"6e1"),
    "more digits": (b"60.0", b"60.00"),
    "whole number for a float": (b"60.0", b"60"),
    "minus zero": (b'"plan":0', b'"plan":-0'),
    "truth for a number": (b'"plan":0', b'"plan":false'),
    "length as a float": (b'"weights":6', b'"weights":6.0'),
    "trailing comma": (b'"round":3', b'"round":3,'),
}


@pytest.mark.parametrize("how", RESPELLINGS)
def test_header_in_another_spelling_is_refused(wire, how):
    header, body = wire.parts(encode(example_order(preprocessing="")))
    canonical, (old, new) = wire.canonical(header), RESPELLINGS[how]
    assert canonical.count(old) >= 1
    wire.refused(wire.framed(canonical.replace(old, new), body))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_header_in_another_encoding_is_refused(wire, encoding):
    header, body = wire.parts(encode(example_order()))
    wire.refused(wire.framed(wire.canonical(header).decode().encode(encoding), body))


@pytest.mark.parametrize("depth", [200, 900, 100_000])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused(wire, depth, opened, closed):
    nested = opened * depth + "1" + closed * depth
    wire.refused(wire.framed(nested.encode()))
    wire.refused(wire.framed((opened * depth).encode()))
    header, body = wire.parts(encode(example_order(cohort=())))
    wire.refused(wire.framed(wire.canonical(header).replace(b'"cohort":[]', b'"cohort":' + nested.encode()), body))


def test_number_of_more_digits_than_python_reads_is_refused(wire):
    header, body = wire.parts(encode(example_order()))
    wire.refused(wire.framed(wire.canonical(header).replace(b'"round":3', b'"round":' + b"3" * 5000), body))


def test_lengths_that_are_swapped_between_vectors_give_other_records_not_longer_ones(wire):
    header, body = wire.parts(encode(example_order()))
    header["lengths"].update(weights=4, control=8)
    moved = decode(wire.framed(header, body))
    assert (moved.weights.size, moved.control.size) == (4, 8)
    header["lengths"].update(weights=8, control=8)
    wire.refused(wire.framed(header, body), "longer than the message")
    header["lengths"].update(weights=2, control=2)
    wire.refused(wire.framed(header, body), "32 bytes follow")


def test_header_beyond_the_message_and_above_the_limit_is_refused(wire):
    header = wire.canonical(wire.parts(encode(example_order()))[0])
    wire.refused(wire.prefix.pack(b"HANSA", 1, len(header) + 1) + header, "does not fit")
    wire.refused(wire.prefix.pack(b"HANSA", 1, MAX_HEADER_BYTES + 1) + bytes(MAX_HEADER_BYTES + 1), "does not fit")


def test_message_above_the_limit_is_refused_unread(wire):
    wire.refused(bytes(MAX_MESSAGE_BYTES + 1), str(MAX_MESSAGE_BYTES))


def test_record_above_the_limits_is_not_sent():
    order = example_order(weights=np.zeros(MAX_MESSAGE_BYTES // 4, np.float32))
    with pytest.raises(MessageError, match=f"a message may have {MAX_MESSAGE_BYTES}"):
        encode(order)
    with pytest.raises(MessageError, match=f"its header {MAX_HEADER_BYTES}"):
        encode(example_order(preprocessing="é" * (MAX_HEADER_BYTES // 2)))


def test_header_full_of_wrong_things_costs_one_line(wire):
    header, body = wire.parts(encode(example_order()))
    header["fields"]["cohort"] = [0] * 100_000
    wire.refused(wire.framed(header, body), "cohort")
    header, body = wire.parts(encode(example_figures()))
    header["fields"]["metrics"] = {f"{i:x}": 0 for i in range(100_000)}
    wire.refused(wire.framed(header, body), "100003 problems")


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(2, np.float64),
        np.zeros(2, ">f4"),
        np.zeros(2, np.int32),
        np.zeros((1, 2), np.float32),
        np.zeros((), np.float32),
        np.array([None, None]),
        [0.0, 0.0],
        b"\0" * 8,
        None,
    ],
)
def test_vector_of_another_dtype_or_shape_is_no_field(vector):
    with pytest.raises(ValueError, match="must be a one-dimensional float32 array"):
        example_reply(update=vector)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickle_is_refused_and_not_run(wire, tmp_path):
    went_off = tmp_path / "went off"
    bomb = pickle.dumps(Bomb(went_off))
    array = io.BytesIO()
    np.save(array, np.array([Bomb(went_off)], dtype=object), allow_pickle=True)
    for attack in (bomb, array.getvalue()):
        wire.refused(attack)
        wire.refused(wire.framed(attack))
        header, _ = wire.parts(encode(StatisticsReply(**reply_with(np.zeros(0, np.int64)))))
        wire.refused(wire.framed(header, attack))
        # In the place of a vector it is a vector: numbers, and no more.
        padded = attack + bytes(-len(attack) % 8)
        header["lengths"]["statistics"] = len(padded) // 8
        assert decode(wire.framed(header, padded)).statistics.tobytes() == padded
    assert not went_off.exists()
    pickle.loads(bomb)  # noqa: S301 - our own: it shows that the bomb was live
    assert went_off.exists()


def reply_with(statistics):
    return {"merchant": "alpha", "order_hash": "c" * 64, "statistics": statistics, "num_train_rows": 1}


@pytest.mark.parametrize("kind", ["order", "reply", "record"])
def test_base_of_records_is_no_kind(wire, kind):
    wire.refused(wire.framed({"kind": kind, "fields": {}, "lengths": {}}), "no known kind")
