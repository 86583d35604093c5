"""An agreement is the same one as people write it and as programs keep it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansa_common.agreement_file import read_agreement
from hansa_common.errors import AgreementError, UsageError

TOML = Path(__file__).parents[1] / "golden" / "agreement.toml"


def test_toml_and_canonical_json_are_one_agreement(tmp_path):
    agreed, text = read_agreement(TOML)
    kept = tmp_path / f"{agreed.fingerprint}.json"
    kept.write_bytes(agreed.canonical_json())
    again, kept_text = read_agreement(kept)
    assert again == agreed
    assert again.fingerprint == agreed.fingerprint
    assert (text, kept_text) == (TOML.read_text(), agreed.canonical_json().decode())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "[]", "is not an agreement"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", "{}", "does not hold"),
        ("a.toml", "{}", "is not TOML"),
    ],
)
def test_file_that_is_no_agreement_is_refused_by_name(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(AgreementError, match=f"{name} {words}"):
        read_agreement(tmp_path / name)


def test_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"a\.json cannot be read: No such file"):
        read_agreement(tmp_path / "a.json")
