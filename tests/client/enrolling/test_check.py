"""`hansa client check` finds what is not in order, piece by piece, before it costs a run; it changes nothing, and tells
the gateway nothing but that it is there."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from hansa_client.audit import Audit
from hansa_client.ledger import Ledger
from hansa_client.ledger_account import Limit
from hansa_client.ledger_entries import Charge
from hansa_client.merchant_files import MerchantFiles
from hansa_client.order_log import OrderLog
from hansa_common.privacy import Gaussian

PIECES = ["keys", "agreement", "certificate", "policy", "hash key", "data", "orders", "audit", "ledger", "gateway"]


@pytest.fixture
def check(installed, door, hansa):
    """What the command finds: its exit code, and by piece the verdict and the words."""

    def run(*options: object):
        data = installed.folder / "alder.csv"
        result = hansa("client", "check", "--data", data, "--state", installed.state, *options, "--json")
        told = json.loads(result.stdout)
        assert told["good"] == (result.exit_code == 0)
        return result.exit_code, {entry["piece"]: (entry["verdict"], entry["told"]) for entry in told["checks"]}

    return run


def content(state):
    return {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}


def test_what_is_in_order_is_told_and_nothing_leaves_but_a_question_for_health(check, installed, door):
    Audit(installed.state / "audit.jsonl").started(installed.agreed.fingerprint)
    OrderLog(installed.state / "orders").begin("run")
    before = content(installed.state)
    code, found = check()
    assert code == 0
    assert list(found) == PIECES
    assert {verdict for verdict, _ in found.values()} == {"good"}
    assert installed.agreed.fingerprint in found["agreement"][1]
    assert "40 rows, 20 positive" in found["data"][1]
    assert "1 lines follow" in found["audit"][1]
    assert content(installed.state) == before
    (heard,) = door.heard
    assert heard == f"GET /health HTTP/1.1\r\nhost: {door.address}\r\ncontent-length: 0\r\n\r\n".encode()


def unreadable_key(installed, door):
    (installed.state / "node.key").chmod(0o644)


def no_approval(installed, door):
    for path in (installed.state / "approved").glob("*.json"):
        path.unlink()


def other_approval(installed, door):
    (path,) = (installed.state / "approved").glob("*.json")
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))


def certificate_of_another_key(installed, door):
    (installed.state / "tls.crt").write_bytes((installed.folder / "kits" / "birch" / "tls.crt").read_bytes())


def misspelt_policy(installed, door):
    (installed.state / "merchant.toml").write_text("max_round = 3\n")


def bad_value(installed, door):
    (installed.folder / "alder.csv").write_text("gift,fraud\nperhaps,1\n")


def no_table(installed, door):
    (installed.folder / "alder.csv").unlink()


def changed_audit(installed, door):
    audit = Audit(installed.state / "audit.jsonl")
    audit.started(installed.agreed.fingerprint)
    audit.started(installed.agreed.fingerprint)
    path = installed.state / "audit.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def damaged_record(installed, door):
    OrderLog(installed.state / "orders").begin("run")
    (path,) = (installed.state / "orders").glob("*.json")
    path.write_text("{}")


def older_ledger(installed, door):
    files = MerchantFiles(installed.folder, installed.folder, installed.state).ledger_files()
    agreed = Limit(8.0, 1e-5, "")
    Ledger(files).charge(Charge("a" * 64, "run", "b" * 64, "c", "round", (Gaussian(9.0),), "a release", agreed))
    files.path.unlink()


def slow_clock(installed, door):
    door.ahead = timedelta(minutes=10)


def fast_clock(installed, door):
    door.ahead = -timedelta(seconds=30)


def no_gateway(installed, door):
    door.close()


TROUBLES = [
    (unreadable_key, "keys", "chmod 600"),
    (no_approval, "agreement", "no agreement is approved"),
    (other_approval, "agreement", "is not what was approved"),
    (certificate_of_another_key, "certificate", "is not of the key"),
    (misspelt_policy, "policy", "did you mean 'max_rounds'"),
    (bad_value, "data", "perhaps"),
    (no_table, "data", "alder.csv"),
    (changed_audit, "audit", "somebody has changed"),
    (damaged_record, "orders", "is damaged"),
    (older_ledger, "ledger", "an older copy was put back"),
    (slow_clock, "gateway", "seconds behind the coordinator's, who would refuse what it signs; set the clock"),
    (fast_clock, "gateway", "seconds ahead of the coordinator's, who would refuse what it signs; set the clock"),
    (no_gateway, "gateway", "nothing listens there"),
]


@pytest.mark.parametrize(("trouble", "piece", "words"), TROUBLES, ids=[trouble.__name__ for trouble, *_ in TROUBLES])
def test_trouble_is_told_at_its_piece_and_is_an_error(check, installed, door, trouble, piece, words):
    trouble(installed, door)
    code, found = check()
    assert code == 1
    assert found[piece][0] == "wrong"
    assert words in found[piece][1]


def test_what_a_policy_will_refuse_and_an_end_that_is_near_want_an_eye_and_are_no_error(check, installed, door):
    words = ["--state", installed.folder / "server", "-o", installed.folder / "kits", "--host", door.address]
    words += ["--renew", "alder", "--days", "20"]
    renewed = installed.hansa("provision", installed.kit / "agreement.toml", *words)
    assert renewed.exit_code == 0, renewed.stderr
    assert installed.enroll("--kit", installed.kit).exit_code == 0
    (installed.state / "merchant.toml").write_text("paused = true\nmax_rounds = 1\n")
    code, found = check()
    assert code == 0
    assert {piece for piece, (verdict, _) in found.items() if verdict == "look"} == {"certificate", "policy"}
    assert "hansa client enroll 'alder' --renew" in found["certificate"][1]
    assert "max_rounds = 1" in found["policy"][1]
    assert "paused = true" in found["policy"][1]


def test_agreement_that_is_not_approved_yet_can_be_tried_on_the_table(check, installed):
    text = (installed.kit / "agreement.toml").read_text()
    (installed.folder / "next.toml").write_text(text.replace('name = "gift"', 'name = "voucher"'))
    code, found = check("--agreement", installed.folder / "next.toml")
    assert code == 1
    assert "is not approved" in found["agreement"][1]
    assert "voucher" in found["data"][1]


def test_table_for_people_has_a_line_for_each_piece(installed, door, hansa):
    result = hansa("client", "check", "--data", installed.folder / "alder.csv", "--state", installed.state)
    assert result.exit_code == 0
    assert all(piece in result.stdout for piece in PIECES)
