"""The roster's keys: one for each name, no two alike, and a fingerprint of their own inside the agreement's."""

from __future__ import annotations

import hashlib
import json

import pytest

from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError

COORDINATOR, ALDER, BIRCH, CEDAR = ("c0" * 32, "a1" * 32, "b2" * 32, "c3" * 32)
VALUES = {
    "task": "fraud",
    "label": {"column": "fraud"},
    "features": [{"kind": "boolean", "name": "gift"}],
    "roster": ["alder", "birch"],
    "trust": {"coordinator": COORDINATOR, "merchants": {"alder": ALDER, "birch": BIRCH}},
}


def agreed(trust=VALUES["trust"], roster=VALUES["roster"]):
    return validate_agreement({**VALUES, "roster": roster, "trust": trust}, "shop.toml")


def trusting(coordinator=COORDINATOR, **merchants):
    return {"coordinator": coordinator, "merchants": merchants}


def test_roster_fingerprint_is_the_sha256_of_names_and_keys_and_nothing_else(places):
    text = f'{{"coordinator":"{COORDINATOR}","merchants":{{"alder":"{ALDER}","birch":"{BIRCH}"}}}}'
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    assert agreed().roster_fingerprint == fingerprint
    another = validate_agreement({**VALUES, "seed": 5, "roster": ["birch", "alder"]}, "shop.toml")
    assert another.roster_fingerprint == fingerprint
    assert another.fingerprint != agreed().fingerprint


@pytest.mark.parametrize(
    ("trust", "roster"),
    [
        (trusting(alder=ALDER, birch=BIRCH, cedar=CEDAR), ["alder", "birch", "cedar"]),
        (trusting(alder=ALDER), ["alder"]),
        (trusting(alder=BIRCH, birch=ALDER), ["alder", "birch"]),
        (trusting(alder=ALDER, birch=CEDAR), ["alder", "birch"]),
        (trusting(alder=ALDER, cedar=BIRCH), ["alder", "cedar"]),
        (trusting(CEDAR, alder=ALDER, birch=BIRCH), ["alder", "birch"]),
    ],
    ids=["an extra merchant", "one less", "keys swapped", "another key", "another name", "another coordinator"],
)
def test_changed_roster_has_another_fingerprint_and_so_has_the_agreement(trust, roster):
    values = {**VALUES, "roster": roster, "trust": trust, "cohort": {"min_merchants": 1}}
    same_but_for_the_roster = {**VALUES, "cohort": {"min_merchants": 1}}
    changed, before = (validate_agreement(v, "shop.toml") for v in (values, same_but_for_the_roster))
    assert changed.roster_fingerprint != before.roster_fingerprint
    assert changed.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("trust", "roster", "told"),
    [
        (trusting(alder=ALDER), ["alder", "birch"], ["no key for 'birch'"]),
        (trusting(alder=ALDER, birch=BIRCH, mallory=CEDAR), ["alder", "birch"], ["a key for 'mallory'", "roster"]),
        (trusting(alder=ALDER, birch=BIRCH), [], ["a key for 'alder', 'birch'"]),
        (trusting(alder=ALDER, birch=ALDER), ["alder", "birch"], ["'alder' and 'birch' have the same key", ALDER]),
        (trusting(ALDER, alder=ALDER, birch=BIRCH), ["alder", "birch"], ["the coordinator and 'alder'", "same key"]),
        (trusting(alder=ALDER, Alder=BIRCH), ["alder", "Alder"], ["'alder' and 'Alder' differ in case or spaces"]),
        (
            {"coordinator": COORDINATOR, "merchants": {"a  b": ALDER, "a b ": BIRCH}},
            ["a  b", "a b "],
            ["'a  b' and 'a b ' differ in case or spaces"],
        ),
        ({"coordinator": COORDINATOR}, ["alder", "birch"], ["trust.merchants: Field required"]),
        ({"merchants": {"alder": ALDER, "birch": BIRCH}}, ["alder", "birch"], ["trust.coordinator: Field required"]),
        ({}, ["alder", "birch"], ["trust.coordinator: Field required", "trust.merchants: Field required"]),
        (trusting(alder=ALDER, birch="B2" * 32), ["alder", "birch"], ["trust.merchants.birch"]),
        (trusting(alder=ALDER, birch="b2" * 31), ["alder", "birch"], ["trust.merchants.birch"]),
        (trusting("", alder=ALDER, birch=BIRCH), ["alder", "birch"], ["trust.coordinator"]),
        (trusting(alder=ALDER, birch=["b2"]), ["alder", "birch"], ["trust.merchants.birch"]),
        ({**trusting(alder=ALDER, birch=BIRCH), "server": CEDAR}, ["alder", "birch"], ["unknown key 'server'"]),
    ],
)
def test_keys_that_do_not_fit_the_roster_are_refused(trust, roster, told):
    with pytest.raises(AgreementError) as refused:
        agreed(trust, roster)
    assert [part for part in told if part not in str(refused.value)] == []


@pytest.mark.parametrize("name", ["../birch", "a/b", "", ".", "..", "a\0b", "a\nb"])
def test_name_of_a_key_holds_nothing_that_a_path_would_obey(name):
    with pytest.raises(AgreementError, match=r"trust\.merchants"):
        agreed({"coordinator": COORDINATOR, "merchants": {name: ALDER, "alder": BIRCH}}, ["alder", "birch"])


def test_agreement_without_keys_has_no_roster_fingerprint_and_is_the_same_otherwise():
    without = agreed().without_trust()
    assert without.roster_fingerprint is None
    assert without == validate_agreement({**VALUES, "trust": None}, "shop.toml")
    assert without.with_trust(agreed().trust) == agreed()


def test_keys_cannot_be_changed_in_place_and_equal_ones_are_equal():
    agreement = agreed()
    with pytest.raises(TypeError):
        agreement.trust.merchants["birch"] = CEDAR
    again = validate_agreement(json.loads(agreement.canonical_json()), "shop.toml")
    assert again == agreement
    assert hash(again) == hash(agreement)


def test_other_roster_than_the_one_with_keys_is_refused():
    with pytest.raises(AgreementError, match="no key for 'cedar'"):
        agreed().with_roster(("alder", "birch", "cedar"))
