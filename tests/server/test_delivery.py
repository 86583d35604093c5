"""The bundle reaches every merchant of its run, now or later, and nobody else; who has it is on record."""

from __future__ import annotations

import json
import socket

import pytest
from flwr.app import Context, RecordDict

from hansa_common import durable_files
from hansa_common.bundle import FILE_NAMES, FLOAT_NAME, INT8_NAME
from hansa_common.errors import BundleError, UsageError
from hansa_common.messages import Delivered, DeliverOrder, IntroduceOrder, Introduction, Refusal
from hansa_common.model import model_files
from hansa_common.parcel import unpack
from hansa_common.trust import Trust
from hansa_server import run_folder
from hansa_server.app import app
from hansa_server.delivery import ABSENT, DELIVERED, NOT_ASKED, WAIT_SECONDS, Consignment, deliver
from hansa_server.run_events import DeliveryFinished, DeliveryStarted, NodeRefused

ROSTER = ("alpha", "beta", "gamma")


class Sender:
    """A run's folder with a signed bundle, and shops that take what is delivered."""

    def __init__(self, world, manual_clock, unfinished, folder, **sections):
        self.world, self.time, self.folder = world, manual_clock, folder
        self.agreement = world.agreement(**{"compression": {"format": "int8"}, **sections})
        run_folder.create(folder, self.agreement)
        parts = unfinished.parts
        model = model_files(parts.spec, parts.weights, parts.preprocessing)
        networks = {FLOAT_NAME: parts.float_tflite, INT8_NAME: parts.int8_tflite}
        durable_files.write_folder(folder / run_folder.SMALL, {**model, **networks})
        self.key, self.events = unfinished.signing_key, []
        self.files = self.sign()
        self.shops = {name: taking(world.Shop(name, self.agreement)) for name in ROSTER}

    def sign(self, run_id="run 1"):
        metrics = {"run_id": run_id, "merchants": {name: {} for name in ROSTER}, "bundle": {"sparsity": 0.5}}
        durable_files.write(self.folder / run_folder.METRICS, json.dumps(metrics).encode())
        run_folder.write_bundle(self.folder, self.key)
        return run_folder.read_bundle(self.folder)[1]

    def deliver(self, *names, peers=None, run_id="delivery"):
        present = {name: self.shops[name] for name in names or ROSTER} | (peers or {})
        grid = self.world.PeerGrid(dict(enumerate(present.values(), 40)), self.time)
        clock = self.time.clock
        return deliver(grid, self.folder, run_id=run_id, on_event=self.events.append, clock=clock)

    def orders(self, name):
        return [order for order in self.shops[name].seen if isinstance(order, DeliverOrder)]

    def recorded(self):
        return json.loads((self.folder / run_folder.DELIVERIES).read_text())["merchants"]


def taking(shop):
    """The shop, which also takes bundles."""
    honest = shop.answer
    shop.answer = lambda order, header: (
        Delivered(**header) if isinstance(order, DeliverOrder) else honest(order, header)
    )
    return shop


@pytest.fixture
def sender(world, manual_clock, unfinished, tmp_path):
    return lambda **sections: Sender(world, manual_clock, unfinished, tmp_path / "run", **sections)


def test_everyone_of_the_run_gets_the_very_files_and_it_is_on_record(sender):
    sent = sender()
    before = Consignment.of_run(sent.folder)
    assert dict(before.words) == dict.fromkeys(ROSTER, NOT_ASKED)
    after = sent.deliver()
    assert sent.recorded() == dict(after.words) == dict.fromkeys(ROSTER, DELIVERED)
    for name in ROSTER:
        (order,) = sent.orders(name)
        assert unpack(order.bundle.tobytes(), FILE_NAMES) == sent.files
        assert (order.recipient, order.fingerprint) == (name, sent.agreement.fingerprint)
        assert (order.run_id, order.sequence) == ("delivery", 1)
    assert sent.time.waits == []
    assert [type(event) for event in (sent.events[0], sent.events[-1])] == [DeliveryStarted, DeliveryFinished]
    assert sent.events[-1].line == "the bundle is at alpha, beta, gamma"


def test_merchant_that_was_away_gets_it_the_next_time_without_waiting_for_those_who_have_it(sender):
    sent = sender()
    assert sent.deliver("alpha", "gamma").missing == {"beta": ABSENT}
    assert sent.time.seconds == pytest.approx(WAIT_SECONDS, abs=1)
    assert "not at beta (absent)" in sent.events[-1].line
    waited = sent.time.seconds
    assert sent.deliver("beta", run_id="later").missing == {}
    assert sent.time.seconds == waited
    assert sent.recorded() == dict.fromkeys(ROSTER, DELIVERED)


def test_delivering_again_brings_it_to_whoever_is_there(sender):
    sent = sender()
    sent.deliver()
    sent.deliver(run_id="again")
    assert [order.run_id for order in sent.orders("beta")] == ["delivery", "again"]


def test_refusal_is_recorded_by_its_code_and_unsays_no_earlier_delivery(sender):
    sent = sender()
    code = "not-permitted"
    refusing = {
        name: sent.world.changed(
            sent.shops[name],
            lambda _, reply: Refusal(merchant=reply.merchant, order_hash=reply.order_hash, code=code),
            DeliverOrder,
        )
        for name in ("alpha", "beta")
    }
    sent.deliver("beta", "gamma", peers={"alpha": refusing["alpha"]})
    assert sent.recorded() == {"alpha": "not-permitted", "beta": DELIVERED, "gamma": DELIVERED}
    sent.deliver("alpha", "gamma", peers={"beta": refusing["beta"]}, run_id="later")
    assert sent.recorded() == dict.fromkeys(ROSTER, DELIVERED)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda *_: None, "deadline"),
        (lambda *_: b"junk", "message-invalid"),
        (lambda _, reply: reply.model_copy(update={"order_hash": "0" * 64}), "wrong-order"),
    ],
)
def test_anything_but_the_one_word_is_no_delivery(sender, change, word):
    sent = sender()
    sent.deliver("alpha", "gamma", peers={"beta": sent.world.changed(sent.shops["beta"], change, DeliverOrder)})
    assert sent.recorded() == {"alpha": DELIVERED, "beta": word, "gamma": DELIVERED}


def test_reply_of_another_kind_is_no_delivery(sender):
    sent = sender()
    device = {"hansa_version": "0", "backend": "numpy", "device": "pencil"}
    change = lambda _, reply: Introduction(**reply.model_dump(), **device)  # noqa: E731
    sent.deliver("alpha", "gamma", peers={"beta": sent.world.changed(sent.shops["beta"], change, DeliverOrder)})
    assert sent.recorded()["beta"] == "wrong-kind"


def test_stranger_gets_no_bundle(sender):
    sent = sender()
    stranger = taking(sent.world.Shop("mallory", sent.agreement))
    sent.deliver(peers={"mallory": stranger})
    assert {type(order) for order in stranger.seen} == {IntroduceOrder}
    assert [event.claimed_name for event in sent.events if isinstance(event, NodeRefused)] == ["mallory"]
    assert set(sent.recorded()) == set(ROSTER)


def test_without_a_roster_those_who_took_part_get_it_and_nobody_else(sender):
    sent = sender(roster=[])
    stranger = taking(sent.world.Shop("late", sent.agreement))
    assert sent.deliver(peers={"late": stranger}).delivered == ROSTER
    assert {type(order) for order in stranger.seen} == {IntroduceOrder}


def test_merchant_of_the_roster_that_missed_the_run_gets_it_too(sender):
    sent = sender(roster=[*ROSTER, "delta"])
    late = taking(sent.world.Shop("delta", sent.agreement))
    assert sent.deliver(peers={"delta": late}).delivered == (*ROSTER, "delta")


def test_nobody_there_is_no_failure_and_everyone_is_recorded_as_absent(sender):
    sent = sender()
    grid = sent.world.PeerGrid({}, sent.time)
    deliver(grid, sent.folder, run_id="delivery", on_event=sent.events.append, clock=sent.time.clock)
    assert sent.recorded() == dict.fromkeys(ROSTER, ABSENT)
    assert "at nobody" in sent.events[-1].line


def test_record_of_another_bundle_does_not_count(sender):
    sent = sender()
    sent.deliver()
    sent.sign("run 2")
    assert set(Consignment.of_run(sent.folder).words.values()) == {NOT_ASKED}
    sent.deliver("alpha", run_id="later")
    assert sent.recorded() == {"alpha": DELIVERED, "beta": ABSENT, "gamma": ABSENT}


@pytest.mark.parametrize("change", ["int8.tflite", "extra", "key"])
def test_bundle_that_is_not_what_was_signed_goes_to_nobody(sender, change):
    sent = sender()
    if change == "key":
        (sent.folder / run_folder.TRUSTED_KEY_NAME).write_text("0" * 64)
    else:
        (sent.folder / run_folder.BUNDLE / change).write_bytes(b"changed")
    with pytest.raises(BundleError):
        sent.deliver()
    assert sent.shops["alpha"].seen == []


def test_folder_without_a_bundle_has_nothing_to_deliver(sender):
    sent = sender()
    durable_files.remove_all(sent.folder / run_folder.BUNDLE)
    with pytest.raises(UsageError, match="no signed bundle"):
        sent.deliver()


def test_server_app_delivers_what_is_signed_and_trains_nothing_anew(sender):
    sent = sender()
    grid = sent.world.PeerGrid(dict(enumerate(sent.shops.values(), 40)), sent.time)
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"run-folder": str(sent.folder)}
    )
    app(grid, context)
    assert sent.recorded() == dict.fromkeys(ROSTER, DELIVERED)
    assert {type(order) for order in sent.shops["beta"].seen} == {IntroduceOrder, DeliverOrder}


def test_run_that_takes_the_folders_place_takes_the_record_with_it(sender):
    sent = sender()
    sent.deliver()
    run_folder.create(sent.folder, sent.agreement, overwrite=True)
    assert {path.name for path in sent.folder.iterdir()} == {run_folder.AGREEMENT}


def test_key_that_is_not_the_agreements_signs_nothing(sender, unfinished):
    sent = sender()
    trust = Trust(coordinator="ab" * 32, merchants=dict(zip(ROSTER, ("0" * 64, "1" * 64, "2" * 64), strict=True)))
    agreed = sent.agreement.with_trust(trust)
    durable_files.write(sent.folder / run_folder.AGREEMENT, agreed.canonical_json())
    durable_files.remove_all(sent.folder / run_folder.BUNDLE)
    with pytest.raises(UsageError) as refused:
        sent.sign()
    assert "ab" * 32 in str(refused.value)
    assert unfinished.trusted in str(refused.value)
    assert not run_folder.has_bundle(sent.folder)


@pytest.fixture
def nobodys_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_command_without_a_run_is_one_clear_line(hansa, tmp_path, nobodys_address):
    result = hansa("server", "deliver", tmp_path, "--server", nobodys_address, "--state", tmp_path / "state")
    assert result.exit_code == 1, result
    (line,) = result.stderr.splitlines()
    assert "did not finish" in line


def test_command_without_a_small_model_is_one_clear_line(sender, hansa, tmp_path, nobodys_address):
    sent = sender()
    for name in (run_folder.BUNDLE, run_folder.SMALL):
        durable_files.remove_all(sent.folder / name)
    result = hansa("server", "deliver", sent.folder, "--server", nobodys_address, "--state", tmp_path / "state")
    assert result.exit_code == 2, result
    (line,) = result.stderr.splitlines()
    assert "nothing to bundle" in line


def test_command_without_a_superlink_says_what_to_start(sender, hansa, tmp_path, nobodys_address):
    sent = sender()
    result = hansa("server", "deliver", sent.folder, "--server", nobodys_address, "--state", tmp_path / "state")
    assert result.exit_code == 1, result
    (line,) = result.stderr.splitlines()
    assert "hansa server start" in line
