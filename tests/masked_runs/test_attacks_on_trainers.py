"""What a coordinator may try against merchants whose vectors are masked, against their real trainers behind their real
boundary. Each fails: it is refused, or what it gives is noise."""

from __future__ import annotations

import numpy as np
import pytest

from hansa_client.guarded_trainer import in_process
from hansa_common.errors import AgreementError, MerchantError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import EvaluateOrder, EvaluateReply, RoundOrder, RoundReply, StatisticsOrder
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.secure_keys import Advertisement, keys_from_bytes, sign_keys
from hansa_common.secure_layouts import evaluation_layout, round_layout, statistics_layout
from hansa_common.secure_messages import KeysOrder, MaskedReply, Masking, UnmaskOrder
from hansa_common.secure_round import common_order_hash
from hansa_common.statistics import statistics_length
from hansa_server.unmasking import unmasked_sum

OCTETS = np.zeros(0, np.uint8)


@pytest.fixture
def world(coordinator):
    """Weights and preprocessing that merchants take, and the elements of a round's vector."""
    agreement = coordinator.agreement
    weights = initial_weights(ModelSpec.from_agreement(agreement), agreement.seed)
    nothing = np.zeros(statistics_length(agreement), np.int64)
    preprocessing = FittedPreprocessing.fit(agreement, nothing).to_json()
    return weights, preprocessing, round_layout(agreement, weights.size, 1).num_elements


def training(coordinator, world, **changes):
    weights, preprocessing, _ = world
    values = {"round": 1, "plan": 0, "cohort": coordinator.agreement.roster, "included": ""}
    vectors = {"weights": weights, "control": np.zeros(0, np.float32)}
    return {**values, **vectors, "preprocessing": preprocessing, **changes}


def common_hash(coordinator, offers, kind, **fields):
    order = coordinator.order("alder", kind, **fields, masking=Masking(sum=offers.session.round, next_sum=0))
    return common_order_hash(order)


def opened(coordinator, closed):
    coordinator.next_exchange()
    return {name: coordinator.opening(name, closed).openings.tobytes() for name in coordinator.trainers}


IN_FEW_BITS = {"secure_aggregation": {"protocol": "double-masking", "update_bits": 4}}


@pytest.mark.parametrize("coordinator", [{}, IN_FEW_BITS], ids=["in 32 bits", "in 4 bits"], indirect=True)
def test_sum_over_the_same_order_is_known_and_over_different_ones_is_noise(coordinator, world):
    """Different weights to one merchant, whose update alone would be in the sum (Pasquini et al., 2022)."""
    layout = round_layout(coordinator.agreement, world[0].size, 1)
    found = {}
    for number, changed in enumerate(({}, {"weights": world[0] + np.float32(0.5)}), 1):
        fields = training(coordinator, world, round=number, asks_scores=number == 1)
        offers = coordinator.offers(number)
        others = {**fields, **changed}
        closed = coordinator.closed(
            offers, RoundOrder, lambda name, f=fields, o=others: f if name == "alder" else o, world[2]
        )
        asked = common_hash(coordinator, offers, RoundOrder, **fields)
        found[number] = unmasked_sum(closed, asked, opened(coordinator, closed))[0]
    assert layout.decode(found[1], 5).num_examples > 300
    # The histogram's counts are zero but for a few bins, where they are not noise.
    assert np.count_nonzero(found[1][-1000:]) < 50
    assert np.count_nonzero(found[2][-1000:]) > 990
    assert abs(np.unpackbits(found[2].view(np.uint8)).mean() - 0.5) < 0.01
    with pytest.raises(ValueError, match="not one of this cohort's vectors"):
        layout.decode(found[2], 5)


def test_shares_are_opened_once_and_never_both_halves_of_a_secret(coordinator, world):
    offers = coordinator.offers(1)
    closed = coordinator.closed(offers, RoundOrder, lambda _: training(coordinator, world), world[2])
    coordinator.next_exchange()
    for name in coordinator.trainers:
        coordinator.opening(name, closed)
    # Now the other half of elm's secrets, as if it had dropped out.
    coordinator.next_exchange()
    for name in coordinator.trainers:
        fields = {"sum": 1, "in_sum": (0, 1, 2, 3), "next_sum": 0, "keys": OCTETS}
        assert coordinator.refused(name, UnmaskOrder, **fields) == "replayed"


@pytest.mark.parametrize("in_sum", [(0,), (0, 1), (), (0, 1, 2, 9_999)], ids=str)
def test_shares_are_not_opened_for_fewer_than_the_least_nor_for_strangers(coordinator, world, in_sum):
    offers = coordinator.offers(1)
    closed = coordinator.closed(offers, RoundOrder, lambda _: training(coordinator, world), world[2])
    coordinator.next_exchange()
    assert coordinator.refused("alder", UnmaskOrder, sum=1, in_sum=in_sum, next_sum=0, keys=OCTETS) == "not-permitted"
    # What was refused has changed nothing.
    assert opened(coordinator, closed)


def test_shares_are_not_opened_by_who_is_said_to_be_out_of_the_sum(coordinator, world):
    offers = coordinator.offers(1)
    coordinator.closed(offers, RoundOrder, lambda _: training(coordinator, world), world[2])
    coordinator.next_exchange()
    fields = {"sum": 1, "in_sum": (0, 1, 2, 3), "next_sum": 0, "keys": OCTETS}
    assert coordinator.refused("elm", UnmaskOrder, **fields) == "not-permitted"


def test_shares_are_not_opened_for_another_sum_than_the_one_under_way(coordinator, world):
    offers = coordinator.offers(1)
    closed = coordinator.closed(offers, RoundOrder, lambda _: training(coordinator, world), world[2])
    for number in (0, 2):
        coordinator.next_exchange()
        fields = {"sum": number, "in_sum": closed.in_sum, "next_sum": 0, "keys": OCTETS}
        assert coordinator.refused("alder", UnmaskOrder, **fields) == "not-permitted"


def test_sum_that_a_merchant_was_told_to_leave_is_not_opened_any_more(coordinator, world):
    offers = coordinator.offers(1)
    closed = coordinator.closed(offers, RoundOrder, lambda _: training(coordinator, world), world[2])
    coordinator.next_exchange()
    nothing = {"in_sum": (), "next_sum": 0, "keys": OCTETS}
    # Nobody's sum is to be opened, which is refused; to leave one is to name none.
    assert coordinator.refused("alder", UnmaskOrder, sum=1, **nothing) == "not-permitted"
    left = coordinator.ask("birch", UnmaskOrder, sum=0, **nothing)
    assert (left.openings.size, left.shares.size) == (0, 0)
    coordinator.next_exchange()
    fields = {"sum": 1, "in_sum": closed.in_sum, "next_sum": 0, "keys": OCTETS}
    assert coordinator.refused("birch", UnmaskOrder, **fields) == "not-permitted"
    assert coordinator.ask("cedar", UnmaskOrder, **fields).openings.size > 0
    coordinator.next_exchange()
    assert coordinator.refused("birch", KeysOrder, sum=1) == "replayed"


def test_nothing_is_masked_for_a_sum_without_shares_or_with_too_few(coordinator, world):
    coordinator.next_exchange()
    fields = training(coordinator, world)
    assert coordinator.refused("alder", RoundOrder, **fields, masking=Masking(sum=1, next_sum=2)) == "not-permitted"
    coordinator.offers(1)
    for round_number in (2, 3):
        coordinator.next_exchange()
        number = round_number - 1
        asked = {**training(coordinator, world, round=round_number), "masking": Masking(sum=number, next_sum=0)}
        assert coordinator.refused("alder", RoundOrder, **asked) == "not-permitted"


def test_key_that_was_in_an_earlier_sum_is_refused_though_its_owner_signs_it_again(coordinator):
    """A colluder's: its shares may have been opened, so the masks with it would be known."""
    from hansa_common.secure_keys import development_identity

    first = coordinator.keys(1)
    coordinator.next_exchange()
    table = np.frombuffer(first.table(), np.uint8)
    for name in coordinator.trainers:
        coordinator.ask(name, UnmaskOrder, sum=0, in_sum=(), next_sum=1, keys=table)
    second, session = coordinator.keys(2), coordinator.session(2)
    old = first.advertisements[4]
    signed = sign_keys(session, 4, old.mask_key, old.share_key, development_identity("elm"))
    tables = {
        "used again": {**second.advertisements, 4: signed},
        "signed by another": {**second.advertisements, 4: Advertisement(old.mask_key, old.share_key, bytes(64))},
        "its own are others": {**second.advertisements, 0: second.advertisements[1]},
    }
    codes = {}
    for how, keys in tables.items():
        coordinator.next_exchange()
        forged = b"".join(place.to_bytes(2, "little") + keys[place].to_bytes() for place in sorted(keys))
        assert keys_from_bytes(forged, 5) == keys
        asked = {"sum": 0, "in_sum": (), "next_sum": 2, "keys": np.frombuffer(forged, np.uint8)}
        codes[how] = coordinator.refused("alder", UnmaskOrder, **asked)
    assert codes == {"used again": "replayed", "signed by another": "not-signed", "its own are others": "not-permitted"}


def test_sum_that_was_there_is_not_begun_again(coordinator):
    coordinator.offers(3)
    coordinator.next_exchange()
    for number in (1, 3):
        assert coordinator.refused("alder", KeysOrder, sum=number) == "replayed"


@pytest.mark.parametrize("kind", [StatisticsOrder, EvaluateOrder])
def test_statistics_and_scores_of_the_same_weights_are_released_in_one_sum(coordinator, world, kind):
    """Two sums over the same rows, the second without one merchant, would differ by what that one has."""
    weights, preprocessing, _ = world
    agreement = coordinator.agreement
    scored = {"split": "test", "preprocessing": preprocessing, "weights": weights}
    fields = scored if kind is EvaluateOrder else {}
    layout = evaluation_layout(agreement) if fields else statistics_layout(agreement)
    coordinator.closed(coordinator.offers(1), kind, lambda _: fields, layout.num_elements)
    offers = coordinator.offers(2)
    coordinator.next_exchange()
    asked = {**fields, **coordinator.masking(offers, "alder")}
    assert coordinator.refused("alder", kind, **asked) == "not-permitted"
    if fields:
        # Other rows, and other weights, are another figure.
        other = {**asked, "split": "validation"}
        assert isinstance(
            coordinator.ask("birch", kind, **{**other, **coordinator.masking(offers, "birch")}), MaskedReply
        )


def test_round_over_weights_that_were_scored_tells_no_histogram_again(coordinator, world):
    fields, layout = training(coordinator, world), round_layout(coordinator.agreement, world[0].size, 1)
    counts = []
    for number, asks_scores in ((1, True), (2, False)):
        offers = coordinator.offers(number)
        asked = {**fields, "round": number, "asks_scores": asks_scores}
        closed = coordinator.closed(offers, RoundOrder, lambda _, a=asked: a, world[2])
        total, _ = unmasked_sum(
            closed, common_hash(coordinator, offers, RoundOrder, **asked), opened(coordinator, closed)
        )
        counts.append(int(layout.decode(total, 5).counts.sum()))
    assert counts[0] > 0
    assert counts[1] == 0


def test_histogram_of_one_is_not_added_to_zeros_of_those_who_told_theirs_before(coordinator, world):
    """Elm was kept out of the first round. If the others told zeros in the second, its sum would be elm's alone."""
    fields = training(coordinator, world)
    offers = coordinator.offers(1)
    coordinator.next_exchange()
    for name in set(coordinator.trainers) - {"elm"}:
        assert isinstance(coordinator.ask(name, RoundOrder, **fields, **coordinator.masking(offers, name)), MaskedReply)
    offers, asked = coordinator.offers(2), {**fields, "round": 2}
    coordinator.next_exchange()
    for name in set(coordinator.trainers) - {"elm"}:
        masked = {**asked, **coordinator.masking(offers, name)}
        assert coordinator.refused(name, RoundOrder, **masked) == "not-permitted"
    # Who is told that no scores are asked for and who is not have masks that do not cancel: the field is in the order.
    assert common_hash(coordinator, offers, RoundOrder, **asked) != common_hash(
        coordinator, offers, RoundOrder, **asked, asks_scores=False
    )


@pytest.mark.parametrize("kind", [RoundOrder, StatisticsOrder, EvaluateOrder])
def test_nothing_leaves_in_the_clear_under_an_agreement_that_masks(coordinator, world, kind):
    weights, preprocessing, _ = world
    scored = {"split": "test", "preprocessing": preprocessing, "weights": weights}
    fields = {RoundOrder: training(coordinator, world), EvaluateOrder: scored, StatisticsOrder: {}}[kind]
    coordinator.next_exchange()
    assert coordinator.refused("alder", kind, **fields) == "not-permitted"


def test_cohort_of_a_masked_round_is_the_roster(coordinator, world):
    offers = coordinator.offers(1)
    coordinator.next_exchange()
    for cohort in (("alder", "birch", "cedar"), tuple(reversed(coordinator.agreement.roster))):
        asked = {**training(coordinator, world, cohort=cohort), **coordinator.masking(offers, "alder")}
        assert coordinator.refused("alder", RoundOrder, **asked) == "not-permitted"


def test_whose_replies_counted_is_the_same_for_everyone_and_for_each_what_it_is_told_of_its_own(coordinator, world):
    """Else all but one could be told to correct their updates away, and what is left of the sum is that one's."""
    offers = coordinator.offers(1)
    coordinator.next_exchange()
    own, least = "ab" * 32, offers.session.thresholds.least
    everyone = tuple(range(len(coordinator.agreement.roster)))
    told = ((own, ()), (own, everyone[1:]), ("", everyone), ("", everyone[1:least]), (own, (*everyone, 0)), (own, (9,)))
    for included, counted in told:
        fields = training(coordinator, world, included=included, counted=counted)
        asked = {**fields, **coordinator.masking(offers, "alder")}
        assert coordinator.refused("alder", RoundOrder, **asked) == "not-permitted"
        coordinator.next_exchange()


def test_scaffold_whose_steps_differ_is_refused_for_it_would_take_two_sums(five):
    """tests/attacks/test_two_sums.py reads two merchants' updates off such sums."""
    training = {"algorithm": "scaffold", "plan": {"optimizer": "sgd"}}
    with pytest.raises(AgreementError, match="of two sums that are weighted otherwise single updates can be read"):
        five.agreement(training=training)
    # With the same steps for everyone there is one vector, and no field for a second.
    assert MaskedReply.model_fields.keys() - {"merchant", "order_hash", "ledger"} == {"vector", "keys"}


def test_merchant_that_starts_again_opens_nothing_of_what_it_masked_before(five, coordinator, world):
    agreement = coordinator.agreement
    offers = coordinator.offers(1)
    closed = coordinator.closed(offers, RoundOrder, lambda _: training(coordinator, world), world[2])
    worker = coordinator.trainers["alder"]._worker
    worker._sums = five.sums(agreement, "alder", worker._sums._memory)
    coordinator.next_exchange()
    fields = {"sum": 1, "in_sum": closed.in_sum, "next_sum": 0, "keys": OCTETS}
    assert coordinator.refused("alder", UnmaskOrder, **fields) == "not-permitted"
    coordinator.next_exchange()
    assert coordinator.refused("alder", KeysOrder, sum=1) == "replayed"
    coordinator.next_exchange()
    assert coordinator.ask("alder", KeysOrder, sum=2).keys.size > 0


def test_trainer_without_a_part_in_masked_sums_masks_nothing(five):
    clear = five.in_the_clear(five.agreement())
    trainers = in_process(clear, five.workers(clear))
    from hansa_common.messages import IntroduceOrder, decode, encode

    header = {"run_id": "run-1", "recipient": "alder", "fingerprint": clear.fingerprint, "deadline_seconds": 60.0}
    trainers["alder"].answer(encode(IntroduceOrder(**header, sequence=0)))
    asked = [
        KeysOrder(**header, sequence=1, sum=1),
        StatisticsOrder(**header, sequence=2, masking=Masking(sum=1, next_sum=0)),
    ]
    assert [decode(trainers["alder"].answer(encode(order))).code for order in asked] == ["not-permitted"] * 2


def test_masks_of_a_merchant_hide_its_vector(coordinator, world):
    """The reply's bytes are uniform, and two replies to the same order in other sums have nothing in common."""
    replies = []
    for number in (1, 2):
        offers = coordinator.offers(number)
        coordinator.next_exchange()
        fields = training(coordinator, world, round=number, asks_scores=number == 1)
        replies.append(coordinator.ask("alder", RoundOrder, **fields, **coordinator.masking(offers, "alder")).vector)
    for vector in (*replies, replies[0] - replies[1]):
        assert abs(np.unpackbits(vector.view(np.uint8)).mean() - 0.5) < 0.01


def test_what_may_not_leave_or_does_not_fit_is_not_masked(coordinator, world):
    """Nobody can look at a vector once it is masked, so it is looked at before: here, whatever made it."""
    weights, preprocessing, _ = world
    offers = coordinator.offers(1)
    sums = coordinator.trainers["alder"]._worker._sums
    head = {"merchant": "alder", "order_hash": "0" * 64}
    below = np.zeros(HISTOGRAM_LENGTH, np.int64)
    below[0], below[-1] = -1, 2
    nothing, floats = np.zeros(HISTOGRAM_LENGTH, np.int64), np.zeros(0, np.float32)
    trained = {**head, "round": 1, "control_delta": floats, "validation": nothing, "train_loss": 0.5}
    masking = coordinator.masking(offers, "alder")
    scored = {"split": "test", "preprocessing": preprocessing, "weights": weights}
    rounds = coordinator.order("alder", RoundOrder, **training(coordinator, world), **masking)
    cases = {
        "of 2 positives": (
            coordinator.order("alder", EvaluateOrder, **scored, **masking),
            EvaluateReply(**head, histogram=below, metrics=None),
        ),
        "norm 6, cohort.max_update_norm is 5": (
            rounds,
            RoundReply(**trained, num_examples=9, update=np.float32([0, 6, 0])),
        ),
        "1001 examples; allowed are 1 to 1000": (
            rounds,
            RoundReply(**trained, num_examples=1001, update=np.zeros_like(weights)),
        ),
    }
    for told, (order, reply) in cases.items():
        with pytest.raises(MerchantError, match=told):
            sums.masked(order, reply)
    # The sum is still under way: nothing was spent.
    held = sums.masked(rounds, RoundReply(**trained, num_examples=9, update=np.zeros_like(weights)))
    assert held.vector.size == world[2]
