"""A run whose every vector is masked comes to what the same run in the clear comes to, whoever drops out and when; what
cannot be summed is abandoned, with its reason, and the model stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hansa_client.masked_sums import MaskedSums
from hansa_common.messages import EvaluateOrder, RoundOrder, StatisticsOrder
from hansa_common.secure_messages import KeysOrder, UnmaskOrder
from hansa_server.masked_sums import SumAbandoned
from hansa_server.run_events import RoundFinished


def rounds_of(ran):
    return [event for event in ran.events if isinstance(event, RoundFinished)]


def in_round(order, number):
    return isinstance(order, RoundOrder) and order.round == number


def assert_same_model(one, other, tolerance=1e-5):
    np.testing.assert_allclose(one.result.weights, other.result.weights, rtol=0, atol=tolerance)
    assert one.result.model.round == other.result.model.round
    for first, second in zip(rounds_of(one), rounds_of(other), strict=True):
        assert first.aggregated == second.aggregated
        assert first.train_loss == pytest.approx(second.train_loss, abs=1e-4)
        if second.validation is not None:
            assert first.validation.num_rows == second.validation.num_rows
            assert first.validation.pr_auc == pytest.approx(second.validation.pr_auc, abs=1e-3)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fedadam"])
def test_masked_run_comes_to_the_model_of_the_run_in_the_clear(five, algorithm):
    agreement = five.agreement(training={"algorithm": algorithm, "rounds": 4, "plan": five.plan})
    masked, clear = five.run(agreement), five.run(five.in_the_clear(agreement))
    assert_same_model(masked, clear)
    assert masked.result.preprocessing == clear.result.preprocessing
    assert masked.result.test.num_rows == clear.result.test.num_rows
    assert masked.result.test.pr_auc == pytest.approx(clear.result.test.pr_auc, abs=1e-3)


def test_nothing_of_one_merchant_alone_leaves_and_nothing_is_kept_of_it(five):
    ran = five.run(five.agreement())
    assert {reply.KIND for reply in ran.grid.replies} == {"introduction", "keys-reply", "masked-reply", "unmask-reply"}
    told = ran.result.to_json()["secure_aggregation"]
    assert (told["threshold"], told["least_in_sum"], told["dropouts"]) == (3, 4, 1)
    for told in ran.result.to_json()["merchants"].values():
        assert told.keys() == {"backend", "device"}


def test_a_round_takes_two_exchanges_once_a_run_has_begun(five):
    ran = five.run(five.agreement())
    asked = dict.fromkeys((order.sequence, order.KIND) for order in ran.grid.orders)
    kinds = [kind for sequence, kind in asked if sequence > 0]
    # Validation of the last model and the test close the run.
    sums = ["statistics", *["round"] * 4, *["evaluate"] * 2]
    assert kinds == ["keys", "unmask", *(kind for what in sums for kind in (what, "unmask"))]


def test_bytes_of_a_round_count_both_of_its_exchanges(five):
    ran = five.run(five.agreement())
    last = rounds_of(ran)[-1]
    vectors = 4 * (32_768 + 3 + len(ran.result.weights)) * len(five.names)
    assert vectors < last.bytes_received < vectors + 12_000


DROPOUTS = {
    "before training": (True, lambda order: in_round(order, 2)),
    "after masking": (False, lambda order: in_round(order, 2)),
}


@pytest.mark.parametrize("when", DROPOUTS)
def test_sum_without_who_dropped_out_is_the_step_without_it(five, when):
    is_before, hits = DROPOUTS[when]
    agreement = five.agreement()
    fault = five.fault(lambda order: hits(order) and order.recipient == "birch", is_before)
    masked = five.run(agreement, fault)
    # Who dropped out of a sum sends keys in the next, and is back in the one after that.
    clear_fault = five.fault(
        lambda order: isinstance(order, RoundOrder) and order.round in {2, 3} and order.recipient == "birch"
    )
    clear = five.run(five.in_the_clear(agreement), clear_fault)
    assert_same_model(masked, clear)
    assert [dict(found.dropped) for found in rounds_of(masked)] == [
        {}, {"birch": "client-error"}, {"birch": "joining"}, {},
    ]  # fmt: skip


def test_who_drops_out_of_the_opening_is_in_the_sum_and_out_of_the_next(five):
    agreement, opening = five.agreement(), set()

    def hits(order):
        if in_round(order, 2):
            opening.add(order.masking.sum)
        return isinstance(order, UnmaskOrder) and order.sum in opening and order.recipient == "cedar"

    masked = five.run(agreement, five.fault(hits))
    clear = five.run(
        five.in_the_clear(agreement), five.fault(lambda order: in_round(order, 3) and order.recipient == "cedar")
    )
    assert_same_model(masked, clear)
    assert [dict(found.dropped) for found in rounds_of(masked)] == [{}, {}, {"cedar": "joining"}, {}]


def test_round_is_abandoned_with_its_reason_and_the_model_stays_where_too_few_open_or_mask(five):
    lost_at = {"too-few-vectors": RoundOrder, "too-few-openings": UnmaskOrder}
    for reason, kind in lost_at.items():
        opening = set()

        def hits(order, kind=kind, opening=opening):
            if in_round(order, 2):
                opening.add(order.masking.sum)
            is_now = in_round(order, 2) if kind is RoundOrder else getattr(order, "sum", 0) in opening
            return isinstance(order, kind) and is_now and order.recipient in {"alder", "birch", "cedar"}

        ran = five.run(five.agreement(), five.fault(hits))
        found = rounds_of(ran)
        assert [entry.aggregated for entry in found] == [True, False, True, True]
        assert [entry.abandoned for entry in found] == ["", reason, "", ""]
        assert reason in {event.reason for event in ran.events if isinstance(event, SumAbandoned)}
        sent = {order.round: order.weights for order in ran.grid.orders if isinstance(order, RoundOrder)}
        np.testing.assert_array_equal(sent[2], sent[3])
        assert not np.array_equal(sent[1], sent[2])


def test_weights_are_scored_once_in_a_run_and_so_a_round_over_the_same_ones_has_no_figure(five):
    ran = five.run(
        five.agreement(),
        five.fault(lambda order: in_round(order, 2) and order.recipient in {"alder", "birch", "cedar"}),
    )
    assert [entry.validation is None for entry in rounds_of(ran)] == [False, True, True, False]


def test_candidates_start_from_the_same_weights_which_are_scored_once(five):
    candidates = [{**five.plan, "algorithm": name} for name in ("fedavg", "scaffold")]
    training = {"algorithm": "auto", "rounds": 6, "trial_rounds": 2, "plan": five.plan, "candidates": candidates}
    ran = five.run(five.agreement(training=training))
    found = rounds_of(ran)
    assert [(entry.plan, entry.validation is None) for entry in found[:4]] == [
        (0, False), (0, False), (1, True), (1, False),
    ]  # fmt: skip
    assert all(entry.aggregated for entry in found)
    assert ran.result.test is not None


def test_merchant_that_starts_again_sits_out_its_sum_and_takes_part_again(five):
    agreement = five.agreement()
    workers, restarted = five.workers(agreement), []

    def hits(order):
        # Its process ends between the two exchanges of round 2: keys and shares were in its memory alone.
        if isinstance(order, UnmaskOrder) and order.recipient == "elm" and len(restarted) == 0 and order.sum == 3:
            sums = workers["elm"]._sums
            workers["elm"]._sums = MaskedSums(agreement, "elm", sums._begun.identity_private_key, sums._memory)
            restarted.append(order.sequence)
        return False

    ran = five.run(agreement, five.fault(hits, is_before=True), workers=workers)
    assert restarted
    assert [dict(found.dropped) for found in rounds_of(ran)] == [{}, {}, {"elm": "joining"}, {}]
    assert all(found.aggregated for found in rounds_of(ran))


def test_test_figures_are_kept_because_merchants_tell_them_once(five):
    agreement, states = five.agreement(), []
    workers = five.workers(agreement)
    first = five.run(agreement, workers=workers, keep=states.append)
    again = five.run(agreement, workers=workers, begun=states[-1])
    assert again.result.test == first.result.test
    assert not [order for order in again.grid.orders if isinstance(order, StatisticsOrder | EvaluateOrder)]


def test_merchants_without_a_sum_of_statistics_make_no_run(five):
    from hansa_common.errors import RunFailedError

    lost = five.fault(lambda order: isinstance(order, StatisticsOrder) and order.recipient in {"alder", "elm", "birch"})
    with pytest.raises(RunFailedError, match="gave no sum"):
        five.run(five.agreement(), lost)


def test_who_was_not_in_the_sum_of_statistics_is_not_in_the_run(five):
    lost = five.fault(lambda order: isinstance(order, StatisticsOrder) and order.recipient == "elm")
    ran = five.run(five.agreement(), lost)
    assert [merchant.name for merchant in ran.result.merchants] == ["alder", "birch", "cedar", "dogwood"]
    assert all(found.aggregated and not found.dropped for found in rounds_of(ran))


def test_threshold_that_asks_for_everyone_abandons_a_round_without_one(five):
    agreement = five.agreement(secure_aggregation={"protocol": "double-masking", "colluders": 3})
    ran = five.run(agreement, five.fault(lambda order: in_round(order, 2) and order.recipient == "elm"))
    assert [entry.abandoned for entry in rounds_of(ran)] == ["", "too-few-vectors", "", ""]
    assert replace(rounds_of(ran)[1]).dropped == {"elm": "client-error"}


def test_masked_run_with_noise_comes_to_the_model_of_the_run_with_the_same_noise_in_the_clear(five):
    """What leaves has noise in it before it is masked, and is below zero at times: neither disturbs the other."""
    private = {
        "epsilon": 90.0, "noise_multiplier": 0.5, "sampling_rate": 0.2, "statistics_noise_multiplier": 1.0,
        "evaluation_noise_multiplier": 1.0,
    }  # fmt: skip
    agreement = five.agreement(privacy={"min_count": 1, "min_positives": 1, "dp": private})
    masked, clear = five.run(agreement), five.run(five.in_the_clear(agreement))
    np.testing.assert_allclose(masked.result.weights, clear.result.weights, rtol=0, atol=1e-5)
    assert masked.result.preprocessing == clear.result.preprocessing
    assert masked.result.test == clear.result.test
    assert {reply.KIND for reply in masked.grid.replies} == {
        "introduction", "keys-reply", "masked-reply", "unmask-reply",
    }  # fmt: skip


def test_simulated_merchants_draw_keys_from_the_seed_and_real_ones_from_their_system(five):
    agreement = five.agreement(training={"algorithm": "fedavg", "rounds": 1, "plan": five.plan})
    first, again = (
        [reply.keys.tobytes() for reply in five.run(agreement).grid.replies if reply.KIND == "keys-reply"] for _ in "ab"
    )
    assert first == again
    assert len(set(first)) == len(first)
    order = KeysOrder(
        run_id="r", sequence=1, recipient="elm", fingerprint=agreement.fingerprint, deadline_seconds=9.0, sum=1
    )
    drawn = {five.sums(agreement, "elm").answer(order, "0" * 64).keys.tobytes() for _ in range(3)}
    assert len(drawn) == 3
