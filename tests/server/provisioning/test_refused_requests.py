"""Who is not answered: strangers, impostors, and whoever asks with keys that are not its own."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa_common.enrolment_papers import encode_request, make_request

MERCHANTS = ("alder", "birch >= 2.5")


def test_roster_is_waited_for_as_a_whole(coordinator, refused):
    coordinator.ask("alder")
    refused(coordinator.answer(), "no request of birch >= 2.5", "whole roster")
    assert not coordinator.kits.exists()
    assert not list((coordinator.state / "issued").glob("*.json"))


def test_request_of_a_stranger_is_refused_and_nothing_is_issued(coordinator, refused):
    for name in (*MERCHANTS, "aldr"):
        coordinator.ask(name)
    refused(coordinator.answer(), "'aldr'", "not in the roster", "did you mean 'alder'?")
    assert not coordinator.kits.exists()
    assert not list((coordinator.state / "issued").glob("*.json"))


@pytest.mark.parametrize("name", ["../../escaped", "..", "/escaped", "a/b", ".hidden"])
def test_name_that_leads_out_of_the_kits_is_refused_though_it_is_signed(coordinator, name, refused):
    """The request is the sender's to write: it is signed in this name as any other is."""
    held = coordinator.merchant("alder")
    values = json.loads(encode_request(make_request("alder", held))) | {"merchant": name}
    del values["signature"]
    text = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    private = Ed25519PrivateKey.from_private_bytes(held.identity)
    values["signature"] = private.sign(b"hansa/enrolment-request/v1\0" + text).hex()
    content = json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    (coordinator.requests / "x.request.json").write_bytes(content)
    before = {path for path in coordinator.folder.rglob("*") if coordinator.state not in (path, *path.parents)}
    refused(coordinator.answer(), "merchant", exit_code=1)
    after = {path for path in coordinator.folder.rglob("*") if coordinator.state not in (path, *path.parents)}
    assert after == before
    assert not list((coordinator.state / "issued").glob("*.json"))


def test_names_file_leads_nowhere_else_than_what_the_request_says(coordinator):
    for name in MERCHANTS:
        coordinator.ask(name, file=f"..{name}")
    coordinator.answered()
    assert {path.name for path in coordinator.kits.iterdir()} == {*MERCHANTS, "agreement.toml"}


def test_two_requests_of_one_name_are_refused_whoever_was_first(coordinator, refused):
    for name in MERCHANTS:
        coordinator.ask(name)
    coordinator.ask("alder", coordinator.merchant("alder", "mallory"), file="again")
    refused(coordinator.answer(), "alder.request.json", "again.request.json", "both of 'alder'")


def test_changed_request_is_refused(coordinator, refused):
    for name in MERCHANTS:
        coordinator.ask(name)
    path = coordinator.requests / "alder.request.json"
    path.write_bytes(path.read_bytes().replace(b'"alder"', b'"birch"'))
    refused(coordinator.answer(), "alder.request.json", "no enrolment request", exit_code=1)


def test_request_with_another_merchants_node_key_is_refused(coordinator, refused):
    """With it the gateway would let one merchant speak as the other."""
    alder, birch = (coordinator.merchant(name) for name in MERCHANTS)
    coordinator.ask("alder", alder)
    coordinator.ask("birch >= 2.5", dataclasses.replace(birch, node=alder.node))
    refused(coordinator.answer(), "the node key of 'alder'")
    coordinator.ask("birch >= 2.5", dataclasses.replace(birch, tls=alder.tls))
    refused(coordinator.answer(), "the TLS key of 'alder'")
    coordinator.ask("birch >= 2.5", dataclasses.replace(birch, identity=alder.identity))
    refused(coordinator.answer(), "the identity key of 'alder'")


def test_request_with_a_node_key_that_was_issued_to_another_is_refused(enrolled, refused):
    (enrolled.requests / "alder.request.json").unlink()
    alder, birch = (enrolled.merchant(name) for name in MERCHANTS)
    assert enrolled.provision("--revoke", "birch >= 2.5").exit_code == 0
    enrolled.ask("birch >= 2.5", dataclasses.replace(birch, node=alder.node, tls=enrolled.merchant("x").tls))
    refused(enrolled.answer(), "the node key of 'alder'")


def test_other_keys_in_an_enrolled_name_are_refused_until_the_first_are_taken_back(enrolled, refused, files_of):
    """Somebody else asks in a merchant's name, and the coordinator takes it for a renewal."""
    before = files_of(enrolled.kits)
    mallory = enrolled.merchant("alder", "mallory")
    enrolled.ask("alder", mallory)
    refused(enrolled.answer(), "'alder' is enrolled", "another identity key", "--revoke 'alder'")
    assert files_of(enrolled.kits) == before
    assert enrolled.provision("--revoke", "alder").exit_code == 0
    told = enrolled.answered()
    assert enrolled.agreed.trust.merchants["alder"] == mallory.identity_key
    assert "every merchant has to approve it anew" in told


def test_identity_that_the_agreement_does_not_name_is_another_roster(enrolled, refused):
    agreement = enrolled.kits / "agreement.toml"
    assert enrolled.provision("--revoke", "alder").exit_code == 0
    enrolled.ask("alder", enrolled.merchant("alder", "anew"))
    before = agreement.read_bytes()
    refused(enrolled.answer(agreement=agreement), "'alder'", "another roster", "[trust]", "approve anew")
    assert agreement.read_bytes() == before


def test_agreement_of_another_coordinator_is_refused(enrolled, tmp_path, refused):
    words = ("--host", "h", "--requests", enrolled.requests, "--state", tmp_path / "other")
    refused(enrolled.provision(*words, agreement=enrolled.kits / "agreement.toml"), "trusts the coordinator", "--state")


@pytest.mark.parametrize("make", ["mkdir", "touch", "missing"])
def test_folder_without_requests_is_refused(coordinator, make, refused):
    folder = coordinator.folder / "empty"
    if make != "missing":
        folder.mkdir()
    if make == "touch":
        (folder / "alder.json").touch()
    refused(coordinator.provision("--host", "h", "--requests", folder), str(folder), "no request")


def test_what_is_not_a_file_is_not_waited_for(coordinator, refused):
    os.mkfifo(coordinator.requests / "alder.request.json")
    refused(coordinator.answer(), "is not a file")
