"""Records as bytes: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hansa_common import messages
from hansa_common.messages import (
    CandidateOrder,
    CandidateReply,
    Delivered,
    DeliverOrder,
    EvaluateOrder,
    EvaluateReply,
    IntroduceOrder,
    Introduction,
    RangesOrder,
    RangesReply,
    Refusal,
    RoundOrder,
    RoundReply,
    SharedMetrics,
    StatisticsOrder,
    StatisticsReply,
    decode,
    encode,
    message_hash,
)
from hansa_common.secure_messages import KeysOrder, KeysReply, MaskedReply, Masking, UnmaskOrder, UnmaskReply

shown = st.characters(exclude_categories=("Cs", "Cc"))
names = st.text(shown, min_size=1, max_size=120)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=50)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
finite = st.floats(allow_nan=False, allow_infinity=False)
row_counts = st.integers(1, 2**30)
# Any bits, NaN and -0.0 too: what may be in a vector is the receiver's to judge, not the codec's.
floats = hnp.arrays("<u4", st.integers(0, 20)).map(lambda bits: bits.view("<f4"))
integers = hnp.arrays("<i8", st.integers(0, 20))
octets = hnp.arrays("u1", st.integers(0, 20))
elements = hnp.arrays("<u4", st.integers(0, 20))

ORDER = {
    "run_id": names,
    "sequence": st.integers(1, 2**53),
    "recipient": names,
    "fingerprint": digests,
    "deadline_seconds": st.floats(0, 1e6, exclude_min=True),
}
REPLY = {"merchant": names, "order_hash": digests}
sums = st.integers(1, 2**31)
MASKABLE = {
    "masking": st.one_of(st.none(), st.builds(Masking, sum=sums, next_sum=st.one_of(st.just(0), sums))),
    "shares": octets,
}
shared_metrics = st.builds(SharedMetrics, num_test_rows=row_counts, roc_auc=finite, pr_auc=finite)

BY_KIND = {
    "introduce": st.builds(IntroduceOrder, **{**ORDER, "sequence": st.just(0)}),
    "statistics": st.builds(StatisticsOrder, **ORDER, **MASKABLE),
    "round": st.builds(
        RoundOrder,
        **ORDER,
        round=st.integers(0, 1_000_000),
        plan=st.integers(0, 1000),
        cohort=st.lists(names, max_size=5).map(tuple),
        preprocessing=texts,
        weights=floats,
        control=floats,
        included=st.one_of(st.just(""), digests),
        stage=st.sampled_from(["train", "prune", "control"]),
        masks=octets,
        **MASKABLE,
    ),
    "evaluate": st.builds(
        EvaluateOrder, **ORDER, split=st.sampled_from(["validation", "test"]), preprocessing=texts, weights=floats
    ),
    "ranges": st.builds(RangesOrder, **ORDER, preprocessing=texts, weights=floats),
    "candidate": st.builds(
        CandidateOrder,
        **ORDER,
        split=st.sampled_from(["validation", "test"]),
        preprocessing=texts,
        weights=floats,
        network=octets,
    ),
    "deliver": st.builds(DeliverOrder, **ORDER, bundle=octets),
    "delivered": st.builds(Delivered, **REPLY),
    "ranges-reply": st.builds(RangesReply, **REPLY, histograms=integers),
    "candidate-reply": st.builds(
        CandidateReply, **REPLY, histogram=integers, candidate=integers, acceptable=st.booleans()
    ),
    "introduction": st.builds(Introduction, **REPLY, hansa_version=names, backend=names, device=names),
    "statistics-reply": st.builds(StatisticsReply, **REPLY, statistics=integers, num_train_rows=row_counts),
    "round-reply": st.builds(
        RoundReply,
        **REPLY,
        round=st.integers(0, 1_000_000),
        num_examples=row_counts,
        update=floats,
        control_delta=floats,
        validation=integers,
        train_loss=finite,
    ),
    "evaluate-reply": st.builds(
        EvaluateReply, **REPLY, histogram=integers, metrics=st.one_of(st.none(), shared_metrics)
    ),
    "keys": st.builds(KeysOrder, **ORDER, sum=sums),
    "unmask": st.builds(
        UnmaskOrder,
        **ORDER,
        sum=sums,
        in_sum=st.lists(st.integers(0, 9_999), max_size=5).map(tuple),
        next_sum=sums,
        keys=octets,
    ),
    "keys-reply": st.builds(KeysReply, **REPLY, keys=octets),
    "masked-reply": st.builds(MaskedReply, **REPLY, vector=elements, keys=octets),
    "unmask-reply": st.builds(UnmaskReply, **REPLY, openings=octets, shares=octets),
    "refusal": st.builds(
        Refusal,
        **REPLY,
        code=st.sampled_from(list(get_args(Refusal.model_fields["code"].annotation))),
    ),
}
any_record = st.one_of(*BY_KIND.values())


def same(one, other):
    """Field by field, vectors bit by bit: a NaN is itself, and -0.0 is not 0.0."""

    def comparable(record):
        values = {name: getattr(record, name) for name in type(record).model_fields}
        return {
            name: (value.dtype, value.tobytes()) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }

    return type(one) is type(other) and comparable(one) == comparable(other)


def test_every_kind_of_record_is_tried_here():
    assert set(BY_KIND) == set(messages._KINDS)


@pytest.mark.parametrize("kind", BY_KIND)
@settings(max_examples=25)
@given(data=st.data())
def test_decoding_undoes_encoding(kind, data):
    record = data.draw(BY_KIND[kind])
    message = encode(record)
    assert kind == record.KIND
    assert same(decode(message), record)
    assert encode(decode(message)) == message


@settings(max_examples=50)
@given(any_record)
def test_equal_records_give_equal_bytes(record):
    values = {name: getattr(record, name) for name in reversed(type(record).model_fields)}
    # Built in another order, with vectors that lie in memory otherwise.
    strided = {
        name: np.repeat(value, 2)[::2] if isinstance(value, np.ndarray) else value for name, value in values.items()
    }
    assert encode(type(record)(**strided)) == encode(record)


@settings(max_examples=50)
@given(any_record, any_record)
def test_different_records_give_different_bytes(one, other):
    assert (encode(one) == encode(other)) == same(one, other)


@settings(max_examples=10)
@given(BY_KIND["round-reply"])
def test_zero_with_and_without_a_sign_give_equal_bytes(record):
    values = {name: getattr(record, name) for name in RoundReply.model_fields}
    one, other = (RoundReply(**{**values, "train_loss": zero}) for zero in (-0.0, 0.0))
    assert encode(one) == encode(other)


def test_bytes_on_the_wire_are_as_documented():
    """Golden bytes: magic, version, header length, header, then little-endian vectors in the header's order."""
    header = (
        '{"fields":{"ledger":"","merchant":"β","num_train_rows":7,"order_hash":"' + "0f" * 32 + '"},'
        '"kind":"statistics-reply","lengths":{"statistics":2}}'
    ).encode()
    golden = b"HANSA\x01" + bytes([len(header), 0, 0, 0]) + header + b"\x02" + bytes(7) + b"\xff" * 8
    record = StatisticsReply(merchant="β", num_train_rows=7, order_hash="0f" * 32, statistics=np.array([2, -1]))
    assert encode(record) == golden
    assert same(decode(golden), record)
    assert message_hash(golden) == hashlib.sha256(golden).hexdigest()


@settings(max_examples=50)
@given(any_record)
def test_decoded_vectors_are_read_only_and_the_record_is_frozen(record):
    decoded = decode(encode(record))
    for name in type(decoded).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(decoded, name, getattr(record, name))
        if isinstance(value := getattr(decoded, name), np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                value[...] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                value.setflags(write=True)


@settings(max_examples=100)
@given(any_record, st.data())
def test_replaced_piece_is_refused_or_says_something_else_canonically(wire, record, data):
    message = encode(record)
    start = data.draw(st.integers(0, len(message)))
    stop = data.draw(st.integers(start, min(start + 8, len(message))))
    wire.accepted_as_written_or_refused(message[:start] + data.draw(st.binary(max_size=8)) + message[stop:])


@given(st.binary(max_size=200))
@example(b"")
@example(b"HANSA\x01" + bytes(4))
@example(b"HANSA\x01" + b"\xff" * 4)
@example(b"\xff\xfe")
def test_noise_is_refused(wire, noise):
    wire.refused(noise)
    wire.refused(wire.framed(noise))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | names | digests,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50)
@given(json_values)
def test_header_of_any_other_json_is_refused(wire, value):
    wire.refused(wire.framed(json.dumps(value).encode()))
    wire.refused(wire.framed(value))
    wire.refused(wire.framed({"kind": value, "fields": {}, "lengths": {}}))


@settings(max_examples=100)
@given(any_record, json_values, st.data())
def test_field_of_any_other_value_is_refused_or_says_something_else_canonically(wire, record, value, data):
    header, body = wire.parts(encode(record))
    section = data.draw(st.sampled_from([header["fields"], *([header["lengths"]] if header["lengths"] else [])]))
    section[data.draw(st.sampled_from(sorted(section)))] = value
    wire.accepted_as_written_or_refused(wire.framed(header, body))
