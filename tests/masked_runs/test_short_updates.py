"""Runs whose updates go in few bits: they learn as runs without, send less, and who does otherwise is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hansa_client.masked_memory import SumMemory
from hansa_client.masked_sums import MaskedSums
from hansa_client.programs import Programs
from hansa_common.secure_keys import development_identity
from hansa_common.secure_layouts import round_layout, rounding
from hansa_server.masked_rounds import check_mean
from hansa_server.run_events import RoundFinished
from hansa_simulations.scenario import simulated_merchants

MODEL = {"hidden": [64], "dropout": 0.0, "l2": 1e-3}
ROUNDS = 8
MOST_PR_AUC_APART = 0.005


def agreement_of(five, bits, algorithm="fedavg", **changes):
    section = {"protocol": "double-masking"} | ({} if bits is None else {"update_bits": bits})
    training = {"algorithm": algorithm, "rounds": ROUNDS, "plan": five.plan}
    # Near what updates are: the longest of these runs is .41.
    cohort = {"min_merchants": 3, "max_update_norm": 0.8, "max_examples": 250}
    values = {"model": MODEL, "training": training, "cohort": cohort, "secure_aggregation": section}
    return five.agreement(**{**values, **changes})


def rounds_of(ran):
    return [event for event in ran.events if isinstance(event, RoundFinished)]


@pytest.fixture(scope="module")
def run(five):
    """Runs over the five shops, with a model of more than three numbers."""
    tables = {name: worker.table for name, worker in five.workers(five.agreement()).items()}
    programs = Programs.for_tables(agreement_of(five, None), *tables.values())

    def run(agreement, changed=lambda workers: workers):
        workers = simulated_merchants(agreement, tables, programs.sharing(agreement))
        return five.run(agreement, workers=changed(workers))

    return run


@pytest.fixture(scope="module")
def in_32_bits(five, run):
    return {algorithm: run(agreement_of(five, None, algorithm)) for algorithm in ("fedavg", "scaffold")}


@pytest.mark.parametrize(("algorithm", "bits"), [("fedavg", 8), ("fedavg", 4), ("scaffold", 8), ("scaffold", 5)])
def test_run_in_few_bits_learns_as_the_run_in_32_and_sends_less(five, run, in_32_bits, algorithm, bits):
    agreement, exact = agreement_of(five, bits, algorithm), in_32_bits[algorithm]
    short = run(agreement)
    assert all(found.aggregated and not found.dropped for found in rounds_of(short))
    assert short.result.test.pr_auc == pytest.approx(exact.result.test.pr_auc, abs=MOST_PR_AUC_APART)
    losses = [found.train_loss for found in rounds_of(short)]
    np.testing.assert_allclose(losses, [found.train_loss for found in rounds_of(exact)], rtol=0, atol=0.005)
    assert losses[-1] < losses[0] - 0.01
    # To the byte what the elements of five merchants' vectors are fewer.
    num_params = len(short.result.weights)
    sizes = [round_layout(agreement_of(five, each), num_params, 1).num_elements for each in (None, bits)]
    saved = [
        other.bytes_received - found.bytes_received
        for found, other in zip(rounds_of(short), rounds_of(exact), strict=True)
    ]
    for each in saved:
        # Lengths are written in the header, where one may have a digit less.
        assert each == pytest.approx(4 * 5 * (sizes[0] - sizes[1]), abs=60)
    entry = short.result.to_json()["rounds"][-1]
    assert entry["bytes_received"] == rounds_of(short)[-1].bytes_received
    assert f"{entry['bytes_received'] / 1e6:.2f} MB received" in rounds_of(short)[-1].line


def test_same_seed_gives_the_same_model_to_the_byte(five, run):
    agreement = agreement_of(five, 4)
    first, again = run(agreement), run(agreement)
    assert first.result.weights.tobytes() == again.result.weights.tobytes()
    assert first.result.weights.tobytes() != run(agreement_of(five, 5)).result.weights.tobytes()


def test_each_round_is_turned_otherwise_and_each_merchants_update_rounded_otherwise(five):
    """Or what is cut off, and how merchants are off, would add up instead of averaging out."""
    agreement = agreement_of(five, 4)
    agreements = (agreement, agreement.with_seed(1))
    turns = {round_layout(other, 100, number).updates.rotation.seed for number in (1, 2) for other in agreements}
    assert len(turns) == 4
    drawn = {rounding(agreement, name, number).random() for number in (1, 2) for name in five.names}
    assert len(drawn) == 10


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mean_of_honest_updates_at_the_bound_is_plausible_and_a_longer_one_is_not(five, bits):
    agreement = agreement_of(five, bits)
    most, layout = agreement.cohort.max_update_norm, round_layout(agreement, 2000, 1)
    update = np.full(2000, 0.999 * most / np.sqrt(2000), np.float32)
    counts = np.zeros(layout.num_counts, np.int64)
    vectors = [layout.encode(update, 0.5, 250, counts, rounding(agreement, name, 1)) for name in five.names]
    found = layout.decode(np.sum(np.stack(vectors), axis=0, dtype=np.uint32), 5)
    check_mean(found, most)
    with pytest.raises(ValueError, match=r"of one merchant at most 0\.8 is allowed, and .* more by rounding"):
        check_mean(replace(found, mean_update=found.mean_update * (1.1 + found.most_error / most)), most)
    # In two bits rounding alone makes a mean longer than that.
    assert (np.linalg.norm(found.mean_update) > 1.01 * most) == (bits == 2)


class In32Bits(MaskedSums):
    """Masks its update as if few bits had not been agreed on."""

    def _update_vector(self, order, reply):
        agreed, self._agreement = self._agreement, self.otherwise
        try:
            return super()._update_vector(order, reply)
        finally:
            self._agreement = agreed


def test_who_sends_its_update_in_other_bits_than_agreed_is_left_out_with_the_reason(five, run):
    agreement = agreement_of(five, 8)

    def with_elm(workers):
        sums = In32Bits(agreement, "elm", development_identity("elm"), SumMemory())
        sums.otherwise, workers["elm"]._sums = agreement_of(five, None), sums
        return workers

    ran = run(agreement, with_elm)
    # With what it sent goes what it said of the next sum.
    assert [dict(found.dropped) for found in rounds_of(ran)] == [{"elm": "wrong-length"}, {"elm": "joining"}] * 4
    assert all(found.aggregated for found in rounds_of(ran))
