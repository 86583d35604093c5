"""Settings of the laws that are tried on many made-up inputs, how a message is forged, and agreements to change."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

from hansa_common import __version__
from hansa_common.agreement import validate_agreement
from hansa_common.errors import MessageError
from hansa_common.messages import decode, encode

GOLDEN = Path(__file__).parents[1] / "golden"

# How long one example takes says how busy the machine is; pytest's own timeout catches what hangs.
settings.register_profile("hansa", deadline=None)
settings.load_profile("hansa")


class Wire:
    """The wire format written down a second time, without the limits and checks of messages.py."""

    prefix = struct.Struct("<5sBI")

    def parts(self, message: bytes):
        """The header as JSON, and the bytes of the vectors."""
        _, _, size = self.prefix.unpack_from(message)
        stop = self.prefix.size + size
        return json.loads(message[self.prefix.size : stop]), message[stop:]

    def canonical(self, header) -> bytes:
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        # JSON can escape half of a surrogate pair; UTF-8 cannot hold it, unless somebody forges it.
        return text.encode(errors="surrogatepass")

    def framed(self, header, vectors: bytes = b"") -> bytes:
        """A message with this header, whatever it says: bytes as they are, anything else as canonical JSON."""
        header = header if isinstance(header, bytes) else self.canonical(header)
        return self.prefix.pack(b"HANSA", 1, len(header)) + header + vectors

    def refused(self, message: bytes, match: str | None = None) -> None:
        with pytest.raises(MessageError, match=match) as told:
            decode(message)
        # What is refused can have megabytes; what is said of it fits a log.
        assert len(str(told.value)) < 1000

    def accepted_as_written_or_refused(self, message: bytes) -> None:
        """The law behind all the others: a decoder takes exactly what an encoder writes."""
        try:
            record = decode(message)
        except MessageError:
            return
        assert encode(record) == message


@pytest.fixture(scope="session")
def wire():
    return Wire()


def leaves(value, place=()):
    """Every place of a nested value that holds no dictionary and no list, with what it holds."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from leaves(entry, (*place, key))
    else:
        yield place, value


def held(values, place):
    for key in place:
        values = values[key]
    return values


def changed(values, place, new):
    """A copy with something else at this place; absent dictionaries on the way are made."""
    copy = json.loads(json.dumps(values))
    target = copy
    for key in place[:-1]:
        target = target[key] if isinstance(target, list) else target.setdefault(key, {})
    target[place[-1]] = new
    return copy


@pytest.fixture(scope="session")
def places():
    """How to walk and change plain values; a module's worth of functions."""
    return SimpleNamespace(leaves=leaves, held=held, changed=changed)


@pytest.fixture(scope="session")
def bases():
    """Agreements that between them use every section and every field, as canonical JSON read back."""
    golden = {**json.loads((GOLDEN / "agreement.json").read_bytes()), "hansa_common": __version__}
    one_plan = {**golden, "trust": None}
    auto = {
        "task": "purchase",
        "label": {"column": "bought"},
        "features": [{"kind": "boolean", "name": "gift"}, {"kind": "numeric", "name": "age", "low": 0, "high": 120}],
        "training": {
            "algorithm": "auto",
            "candidates": [{"algorithm": "scaffold"}, {"algorithm": "fedadam", "optimizer": "adam"}],
        },
    }
    trusted = {**golden, "features": [{"kind": "boolean", "name": "gift"}], "data": {}}
    given = {"one plan": one_plan, "auto": auto, "trusted": trusted}
    return {name: json.loads(validate_agreement(v, name).canonical_json()) for name, v in given.items()}
