"""Rows on the wire: one way to write them, and everything else refused, with MessageError and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.errors import MessageError
from hansa_common.secure_keys import ADVERTISEMENT_BYTES, Advertisement, keys_from_bytes, keys_to_bytes
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_shares import SEALED_BYTES, Offer

NUM_PLACES = 6
ROW_BYTES = 3
ROWS = st.dictionaries(st.integers(0, NUM_PLACES - 1), st.binary(min_size=ROW_BYTES, max_size=ROW_BYTES))


def read_offer(content: bytes) -> bytes:
    return Offer.from_bytes(content, NUM_PLACES).to_bytes()


def read_keys(content: bytes) -> bytes:
    return keys_to_bytes(keys_from_bytes(content, NUM_PLACES))


def read_rows(content: bytes) -> bytes:
    return rows_to_bytes(rows_from_bytes(content, ROW_BYTES, NUM_PLACES))


def read_keys_of_one(content: bytes) -> bytes:
    return Advertisement.from_bytes(content).to_bytes()


READERS = (read_offer, read_keys, read_rows, read_keys_of_one)


@given(rows=ROWS)
def test_rows_are_read_as_they_were_written(rows):
    read = rows_from_bytes(rows_to_bytes(rows), ROW_BYTES, NUM_PLACES)
    assert read == rows
    assert list(read) == sorted(rows)


@given(content=st.binary(max_size=40) | st.integers(0, 900).map(bytes))
def test_bytes_are_taken_only_if_they_are_what_would_be_written(content):
    for read in READERS:
        try:
            assert read(content) == content
        except MessageError:
            continue


@given(rows=ROWS.filter(bool), data=st.data())
def test_a_changed_byte_is_refused_or_read_as_what_it_says_now(rows, data):
    content = bytearray(rows_to_bytes(rows))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    try:
        read = rows_from_bytes(bytes(content), ROW_BYTES, NUM_PLACES)
    except MessageError:
        return
    assert read != rows
    assert rows_to_bytes(read) == content


@pytest.mark.parametrize("cut", [1, 2, ROW_BYTES, -1])
def test_a_piece_of_a_row_is_refused(cut):
    content = rows_to_bytes({0: b"abc", 4: b"def"})
    with pytest.raises(MessageError, match="are not up to 6 rows of 3"):
        rows_from_bytes(content[:-cut] if cut > 0 else content + b"\0", ROW_BYTES, NUM_PLACES)


@pytest.mark.parametrize(
    "places", [(1, 0), (2, 2), (0, NUM_PLACES), (0, 65_535)], ids=["descending", "twice", "beyond", "far beyond"]
)
def test_places_out_of_order_or_of_the_cohort_are_refused(places):
    content = b"".join(place.to_bytes(2, "little") + b"abc" for place in places)
    with pytest.raises(MessageError, match="follows"):
        rows_from_bytes(content, ROW_BYTES, NUM_PLACES)


def test_more_rows_than_places_are_refused_before_one_is_read():
    with pytest.raises(MessageError, match="are not up to 6 rows"):
        rows_from_bytes(bytes(5 * (NUM_PLACES + 1)), ROW_BYTES, NUM_PLACES)


def test_an_offer_is_its_commitment_and_its_rows():
    offer = Offer(bytes(range(32)), {1: bytes(SEALED_BYTES)})
    assert Offer.from_bytes(offer.to_bytes(), NUM_PLACES) == offer
    with pytest.raises(MessageError, match="an offer of shares has 32 bytes at least, this one 31"):
        Offer.from_bytes(bytes(31), NUM_PLACES)


def test_what_a_round_costs_in_bytes_is_stated():
    # A merchant's keys, and its shares for one other: docs/adr and the benchmark count with these.
    assert (ADVERTISEMENT_BYTES, SEALED_BYTES) == (128, 160)
