"""Files packed into one array: the same files the same bytes, and nothing but what was packed can be unpacked."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.errors import MessageError
from hansa_common.parcel import pack, unpack

NAMES = ("card.md", "int8.tflite", "manifest.json", "weights.npz")
files_of_a_kind = st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=40))


def framed(header: object, contents: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return b"HANSA-FILES-1" + struct.pack("<I", len(text)) + text + contents


@given(files_of_a_kind)
def test_unpacking_undoes_packing_whatever_the_order_of_the_files(files):
    content = pack(files)
    assert unpack(content, NAMES) == files
    assert pack(dict(reversed(list(files.items())))) == content


@given(files_of_a_kind, st.data())
def test_bytes_are_unpacked_as_they_were_packed_or_not_at_all(files, data):
    content = bytearray(pack(files))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(content), NAMES)
    except MessageError:
        return
    assert pack(found) == content


@given(files_of_a_kind, st.data())
def test_cut_or_longer_bytes_are_refused(files, data):
    content = pack(files)
    cut = data.draw(st.integers(0, len(content) - 1))
    for damaged in (content[:cut], content + b"\0"):
        with pytest.raises(MessageError):
            unpack(damaged, NAMES)


@pytest.mark.parametrize(
    "name",
    [
        "../card.md", "/etc/passwd", "card.md/../../x", "folder/card.md", "CARD.MD", "card.md\0", "", ".", "..",
        "threshold.json", "coordinator.pub", "..\\card.md", "card.md ", "\x1b[2Jcard.md", "x" * 5000,
    ],
)  # fmt: skip
def test_name_that_is_not_on_the_list_is_refused_whatever_path_it_is(name):
    with pytest.raises(MessageError, match="may not be called") as told:
        unpack(pack({name: b"x"}), NAMES)
    assert len(str(told.value)) < 400
    assert "\x1b" not in str(told.value)


@pytest.mark.parametrize(
    "header",
    [
        {"card.md": 1},
        "card.md",
        None,
        [["card.md"]],
        [["card.md", 1, 1]],
        [["card.md", True]],
        [["card.md", 1.0]],
        [["card.md", -1], ["weights.npz", 2]],
        [["card.md", "1"]],
        [[["card.md"], 1]],
        [["card.md", 2**63]],
        [["weights.npz", 0], ["card.md", 1]],
        [["card.md", 0], ["card.md", 1]],
        b'[["card.md", 1]]',
        b'[["card.md",1]',
        b"[" * 60_000,
        b'[["card.md",NaN]]',
        b"\xff",
    ],
)
def test_header_of_any_other_form_is_refused(header):
    with pytest.raises(MessageError):
        unpack(framed(header, b"x"), NAMES)


def test_header_longer_than_its_bytes_or_its_limit_is_refused():
    for size in (100, 2**32 - 1):
        with pytest.raises(MessageError, match="does not fit"):
            unpack(b"HANSA-FILES-1" + struct.pack("<I", size) + b"[]", NAMES)
