"""Under an agreement with [trust] every order leaves signed, and a reply counts that its merchant has signed."""

from __future__ import annotations

import json
from itertools import count, pairwise

import numpy as np
import pytest

from hansa_common.errors import CoordinatorError, RunFailedError, SignatureError, UsageError
from hansa_common.keys import public_key_of
from hansa_common.messages import (
    IntroduceOrder,
    Refusal,
    RoundOrder,
    StatisticsOrder,
    StatisticsReply,
    decode,
    encode,
    message_hash,
)
from hansa_common.record_types import EVERYONE
from hansa_common.sealing import SEAL_BYTES, open_seal, seal, unopened_hash, unverified
from hansa_common.trust import Trust
from hansa_server import run_folder
from hansa_server.exchange import Addressed, Exchange
from hansa_server.federation import run_federation
from hansa_server.participants import Run
from hansa_server.run_state import RunState
from hansa_server.seals import Sealed, Unsealed, seals_for

ROSTER = ("alpha", "beta", "gamma")
SIGNING = bytes(range(32))
KEYS = {name: bytes([number]) * 32 for number, name in enumerate(ROSTER, 1)}
TRUST = Trust(coordinator=public_key_of(SIGNING), merchants={name: public_key_of(key) for name, key in KEYS.items()})
SEALS = Sealed(TRUST, SIGNING, count(1).__next__)


@pytest.fixture
def agreed(world):
    return world.agreement(trust=TRUST.model_dump())


def sealing(shop, key):
    """The shop behind its seals: it believes the coordinator's orders, and signs with this key."""

    def respond(sealed):
        return seal(shop(open_seal(sealed, TRUST.coordinator, "order")), key, "reply")

    return respond


def peers_of(world, agreed, **others):
    honest = {name: sealing(world.Shop(name, agreed, num_train_rows=400), KEYS[name]) for name in ROSTER}
    return dict(enumerate({**honest, **others}.values(), 7))


def run(world, manual_clock, agreed, peers, events=None):
    grid = world.PeerGrid(peers, manual_clock)
    on_event = (lambda _: None) if events is None else events.append
    result = run_federation(grid, agreed, RunState("run"), on_event=on_event, clock=manual_clock.clock, seals=SEALS)
    return result, grid


@pytest.fixture
def ask(world, manual_clock):
    """What comes of one order to alpha, whatever its peer makes of it."""

    def answer(respond, order=None):
        header = {"run_id": "run", "sequence": 1, "fingerprint": "0" * 64, "deadline_seconds": 5.0}
        asked = order or StatisticsOrder(recipient="alpha", **header)
        exchange = Exchange(world.PeerGrid({1: respond}, manual_clock), manual_clock.clock, SEALS)
        (found,) = exchange.ask([Addressed(1, asked)], 5.0)
        return found

    return answer


def test_signed_run_ends_in_the_model_of_an_unsigned_one(world, manual_clock, agreed, federation):
    result, grid = run(world, manual_clock, agreed, peers_of(world, agreed))
    assert result.weights.tobytes() == federation().run().weights.tobytes()
    for _, order in grid.orders:
        open_seal(order, TRUST.coordinator, "order")
    assert all(entry.dropped == {} for entry in result.rounds)


def test_merchants_are_told_of_their_replies_by_the_hash_that_they_know(world, manual_clock, agreed):
    """SCAFFOLD's variate is committed by it: a hash of the sealed bytes would name no reply."""
    shops = {name: world.Shop(name, agreed, seed=i) for i, name in enumerate(ROSTER)}
    peers = {i: sealing(shop, KEYS[name]) for i, (name, shop) in enumerate(shops.items())}
    run(world, manual_clock, agreed, peers)
    for shop in shops.values():
        rounds = [order for order in shop.seen if isinstance(order, RoundOrder)]
        replies = [message_hash(reply) for order, reply in zip(shop.seen, shop.replies, strict=True) if order in rounds]
        assert [order.included for order in rounds] == ["", *replies[:-1]]


@pytest.mark.parametrize("who", ["alpha", "mallory", "nobody"])
def test_merchant_whose_replies_are_signed_by_another_or_by_nobody_takes_no_part(world, manual_clock, agreed, who):
    key = {**KEYS, "mallory": bytes([9]) * 32}.get(who)
    shop = world.Shop("beta", agreed)
    forged = sealing(shop, key) if key else lambda sealed: shop(unverified(sealed))
    events = []
    result, _ = run(world, manual_clock, agreed, peers_of(world, agreed, beta=forged), events)
    assert {merchant.name for merchant in result.merchants} == {"alpha", "gamma"}
    assert any("not-signed" in event.line for event in events)


def test_reply_in_a_round_must_be_signed_by_the_merchant_who_was_asked(world, manual_clock, agreed):
    beta = world.Shop("beta", agreed, seed=1)

    def signed_by_another_later(sealed):
        order = decode(unverified(sealed))
        return seal(beta(unverified(sealed)), KEYS["alpha" if isinstance(order, RoundOrder) else "beta"], "reply")

    result, _ = run(world, manual_clock, agreed, peers_of(world, agreed, beta=signed_by_another_later))
    assert [entry.dropped for entry in result.rounds] == [{"beta": "not-signed"}] * 3


def test_reply_counts_with_the_signature_alone_and_with_every_byte_of_it(ask, world, agreed):
    shop = world.Shop("alpha", agreed)
    assert ask(sealing(shop, KEYS["alpha"])).code == ""

    def spoilt(sealed):
        reply = bytearray(sealing(shop, KEYS["alpha"])(sealed))
        reply[-1] ^= 1
        return bytes(reply)

    for respond in (
        spoilt,
        lambda sealed: shop(unverified(sealed)),
        lambda sealed: sealed,
        lambda sealed: seal(shop(unverified(sealed)), KEYS["alpha"], "order"),
        lambda sealed: sealing(shop, KEYS["alpha"])(sealed)[:SEAL_BYTES],
        lambda _: b"",
    ):
        assert ask(respond).code == "not-signed"


def test_refusal_counts_that_names_the_order_by_the_bytes_that_were_sent_and_not_by_others(ask):
    def refusing(told):
        def respond(sealed):
            refusal = Refusal(merchant="alpha", order_hash=told(sealed), code="not-signed")
            return seal(encode(refusal), KEYS["alpha"], "reply")

        return respond

    assert ask(refusing(unopened_hash)).code == "not-signed"
    for told in (
        lambda sealed: unopened_hash(unverified(sealed)),
        lambda sealed: unopened_hash(seal(unverified(sealed), bytes(32), "order")),
        message_hash,
    ):
        assert ask(refusing(told)).code == "wrong-order"


def test_nothing_but_a_refusal_may_name_the_order_by_the_bytes_that_were_sent(ask):
    def respond(sealed):
        head = {"merchant": "alpha", "order_hash": unopened_hash(sealed)}
        return seal(
            encode(StatisticsReply(**head, statistics=np.zeros(2, np.int64), num_train_rows=9)), KEYS["alpha"], "reply"
        )

    assert ask(respond).code == "wrong-order"


def test_introduction_must_be_signed_by_whom_it_claims_to_be(ask, world, agreed):
    order = IntroduceOrder(run_id="run", recipient=EVERYONE, fingerprint="0" * 64, deadline_seconds=5.0)
    for name, key, code in (("alpha", "alpha", ""), ("alpha", "beta", "not-signed"), ("zeta", "alpha", "not-signed")):
        shop = world.Shop(name, agreed)
        assert ask(sealing(shop, KEYS[key]), order).code == code


def test_every_introduction_has_a_number_above_those_before(world, manual_clock, agreed):
    numbers = []
    for _ in range(2):
        _, grid = run(world, manual_clock, agreed, peers_of(world, agreed))
        orders = [decode(unverified(sealed)) for _, sealed in grid.orders]
        numbers += [order.number for order in orders if isinstance(order, IntroduceOrder)]
    assert len(numbers) == 2 * len(ROSTER)
    assert all(before < after for before, after in pairwise(numbers))


def test_bytes_counted_are_those_that_travelled(ask, world, agreed):
    sizes = []

    def respond(sealed):
        sizes.append(len(sealed))
        reply = sealing(world.Shop("alpha", agreed), KEYS["alpha"])(sealed)
        sizes.append(len(reply))
        return reply

    answer = ask(respond)
    assert [answer.sent.num_bytes, answer.bytes_received] == sizes


def test_run_whose_seals_are_not_its_agreements_does_not_begin(world, manual_clock, agreed):
    grid = world.PeerGrid({}, manual_clock)
    for agreement, seals in ((agreed, Unsealed()), (world.agreement(), SEALS)):
        exchange = Exchange(grid, manual_clock.clock, seals)
        with pytest.raises(ValueError, match="signed as its agreement says"):
            Run(exchange, agreement, agreement.fingerprint, "run", lambda _: None)
    with pytest.raises(ValueError, match="signed as its agreement says"):
        run_federation(grid, agreed, RunState("run"), on_event=lambda _: None, clock=manual_clock.clock)


# The key


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "state" / "signing.key"
    path.parent.mkdir(mode=0o700)
    path.write_text(SIGNING.hex())
    path.chmod(0o600)
    return path


def test_key_that_the_agreement_does_not_trust_is_refused_with_both(world, agreed, key_file):
    assert seals_for(agreed, key_file) == SEALS
    assert seals_for(world.agreement(), None).trust is None
    with pytest.raises(UsageError, match="no signing key"):
        seals_for(agreed, None)
    key_file.write_text(bytes(32).hex())
    with pytest.raises(UsageError, match=f"{public_key_of(bytes(32))}, the agreement trusts {TRUST.coordinator}"):
        seals_for(agreed, key_file)
    key_file.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        seals_for(agreed, key_file)


def test_key_is_in_no_text_of_the_seals():
    assert SIGNING.hex() not in repr(SEALS)
    assert repr(SIGNING) not in repr(SEALS)


def test_run_folder_names_the_file_of_the_key_and_never_holds_it(agreed, key_file, tmp_path):
    folder = tmp_path / "run"
    run_folder.create(folder, agreed, signing_key_file=key_file)
    assert run_folder.signing_key_file(folder) == key_file
    assert not any(SIGNING.hex().encode() in path.read_bytes() for path in folder.iterdir())
    run_folder.create(folder, agreed)
    assert run_folder.signing_key_file(folder) is None
    for damaged in (b"", b"[]", b"{}", json.dumps({"signing_key": 3}).encode()):
        (folder / run_folder.COORDINATOR).write_bytes(damaged)
        with pytest.raises(CoordinatorError, match=r"coordinator\.json"):
            run_folder.signing_key_file(folder)


def test_reply_of_a_merchant_that_the_agreement_does_not_know_is_nobodys():
    with pytest.raises(SignatureError, match="trusts no merchant 'mallory'"):
        SEALS.open_reply(seal(b"reply", KEYS["alpha"], "reply"), "mallory")


def test_too_few_signed_merchants_are_too_few(world, manual_clock, agreed):
    impostor = sealing(world.Shop("beta", agreed), bytes([9]) * 32)
    peers = peers_of(world, agreed, beta=impostor, gamma=lambda _: None)
    with pytest.raises(RunFailedError, match=r"1 merchants came.*not-signed"):
        run(world, manual_clock, agreed, peers)


def test_sealed_order_is_the_order_itself_within(world, manual_clock, agreed):
    _, grid = run(world, manual_clock, agreed, peers_of(world, agreed))
    for _, sealed in grid.orders:
        assert encode(decode(unverified(sealed))) == unverified(sealed)
