"""A small model is released by those who have labelled rows, or not at all: each way to be refused, in its words."""

from __future__ import annotations

import numpy as np
import pytest

from hansa_common.activations import activation_histograms, ranges_from_histograms
from hansa_common.features import Inputs
from hansa_common.messages import CandidateOrder, CandidateReply, RangesOrder, RangesReply
from hansa_common.metrics import NUM_BINS, score_histogram
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.pruning import magnitude_mask, masked, num_pruned
from hansa_common.tflite import TfliteNetwork
from hansa_server.compression import compress
from hansa_server.exchange import Exchange
from hansa_server.finishing import Finishing
from hansa_server.participants import Merchant, Run
from hansa_server.pruning_rounds import Pruned, StageModel
from hansa_server.run_events import CandidateJudged
from hansa_server.seals import Unsealed

pytestmark = pytest.mark.system
ROWS = {"alpha": 400, "beta": 700, "gamma": 500}
COMPRESSION = {"format": "int8", "max_pr_auc_loss": 0.003, "max_merchant_pr_auc_loss": 0.05}


class Finisher:
    """The finishing of one model over shops, some of them changed; the files come from the real child process."""

    def __init__(self, world, manual_clock, files, agreement):
        self.world, self.time, self.files, self.agreement = world, manual_clock, files, agreement
        self.spec = ModelSpec.from_agreement(agreement)
        self.weights = initial_weights(self.spec, 5)
        self.shops = {
            name: SmallModelShop(world.Shop(name, agreement, num_train_rows=n), self.spec) for name, n in ROWS.items()
        }
        self.events = []

    def finished(self, peers=None, weights=None, pruning=None):
        names = {**self.shops, **(peers or {})}
        merchants = tuple(Merchant(name, i, "b", "d", rows) for i, (name, rows) in enumerate(ROWS.items()))
        grid = self.world.PeerGrid(dict(enumerate(names.values())), self.time)
        exchange = Exchange(grid, self.time.clock, Unsealed())
        run = Run(exchange, self.agreement, self.agreement.fingerprint, "run", self.events.append)
        finishing = Finishing(run, merchants, self.spec, "preprocessing", compress=self.files)
        return finishing.finished(self.weights if weights is None else weights, pruning)


class SmallModelShop:
    """A shop that also knows orders about small models, and scores them as they are: by opening the file."""

    def __init__(self, shop, spec):
        self.shop, self.spec = shop, spec
        honest = shop.answer

        def answer(order, header):
            match order:
                case RangesOrder():
                    histograms = activation_histograms(spec, order.weights, self.inputs("train", order.weights), 1)
                    return RangesReply(**header, histograms=histograms)
                case CandidateOrder():
                    return CandidateReply(
                        **header,
                        histogram=shop.histogram(order.split, order.weights),
                        candidate=self.histogram(order),
                        acceptable=True,
                    )
            return honest(order, header)

        shop.answer = answer

    def __call__(self, order_bytes):
        return self.shop(order_bytes)

    def inputs(self, split, weights):
        rows, _ = self.shop.rows(split, weights.size)
        dense = rows[:, : self.spec.num_dense].astype(np.float32)
        return Inputs(dense, np.zeros((len(rows), 0), np.int32))

    def histogram(self, order):
        network = TfliteNetwork(order.network.tobytes(), self.spec.num_dense, 0)
        logits = network.logits(self.inputs(order.split, order.weights))
        return score_histogram(logits, self.shop.rows(order.split, order.weights.size)[1])


@pytest.fixture(scope="module")
def files():
    """The real child process, once for equal arguments."""
    made = {}

    def compress_once(spec, weights, ranges):
        key = (spec.model_dump_json(), weights.tobytes(), tuple(ranges.items()))
        if key not in made:
            made[key] = compress(spec, weights, ranges)
        return made[key]

    return compress_once


@pytest.fixture
def finisher(world, manual_clock, files):
    return lambda **sections: Finisher(
        world, manual_clock, files, world.agreement(**{"compression": COMPRESSION, **sections})
    )


def changed(finisher, name, change, kind=CandidateOrder):
    return {name: finisher.world.changed(finisher.shops[name], change, kind)}


def test_small_model_that_loses_nothing_is_released_with_its_figures(finisher):
    ready = finisher()
    finished = ready.finished()
    assert finished.refusal == ""
    told = finished.to_json()
    assert told["compression"]["released"]
    assert told["compressed"]["pr_auc"] == pytest.approx(finished.test.original.pr_auc, abs=0.01)
    assert set(told["bundle"]) == {"bytes", "gzip_bytes", "float32_bytes", "sparsity"}
    assert told["bundle"]["bytes"] == len(finished.released.int8_file)


def test_ranges_are_of_everyones_histograms_together(finisher):
    ready = finisher()
    finished = ready.finished()
    parts = [
        activation_histograms(ready.spec, ready.weights, shop.inputs("train", ready.weights), 1)
        for shop in ready.shops.values()
    ]
    expected = ranges_from_histograms(ready.spec, np.sum(parts, axis=0), ready.agreement.compression.range_quantile)
    assert finished.compressed is ready.files(ready.spec, ready.weights, expected)


def worse(_, reply):
    """Every positive of this merchant's rows ends below every negative."""
    histogram = reply.candidate
    negatives, positives = histogram[:NUM_BINS].sum(), histogram[NUM_BINS:].sum()
    spoiled = np.zeros_like(histogram)
    spoiled[NUM_BINS - 1], spoiled[NUM_BINS] = negatives, positives
    return reply.model_copy(update={"candidate": spoiled})


def test_loss_beyond_the_agreed_one_is_not_released_and_told_with_its_figure(finisher):
    ready = finisher()
    finished = ready.finished(changed(ready, "beta", worse))
    assert finished.released is None
    before, after = finished.validation.original.pr_auc, finished.validation.candidate.pr_auc
    assert finished.refusal.startswith(f"validation PR-AUC would fall by {before - after:.3g}")
    assert finished.refusal.endswith(f"from {before:.4f} to {after:.4f}, allowed are 0.003")
    assert ready.events[-1].line.endswith("; the float model remains")
    told = finished.to_json()
    assert not told["compression"]["released"]
    assert "compressed" not in told
    assert (
        told["compression"]["validation"]["candidate"]["pr_auc"]
        < told["compression"]["validation"]["original"]["pr_auc"]
    )


def test_one_merchant_that_loses_too_much_stops_the_release_and_is_named(finisher):
    ready = finisher()
    finished = ready.finished(changed(ready, "gamma", lambda _, r: r.model_copy(update={"acceptable": False})))
    assert finished.refusal.startswith("gamma would lose more than 0.05")
    (event,) = [event for event in ready.events if isinstance(event, CandidateJudged)]
    assert "the float model remains" in event.line


def test_who_refuses_does_not_hide_what_the_federation_would_lose(finisher):
    ready = finisher()
    refused = changed(ready, "beta", lambda _, r: worse(_, r).model_copy(update={"acceptable": False}))
    first, second = ready.finished(refused).refusal.split("; ")
    assert first.startswith("beta would lose more than 0.05")
    assert second.startswith("validation PR-AUC would fall by")


def test_without_enough_judges_nothing_is_released(finisher):
    ready = finisher(cohort={"min_merchants": 3})
    finished = ready.finished(changed(ready, "alpha", lambda *_: None))
    assert "too few merchants could judge" in finished.refusal


def test_without_enough_ranges_nothing_is_made(finisher):
    ready = finisher(cohort={"min_merchants": 3})
    finished = ready.finished(changed(ready, "alpha", lambda *_: None, RangesOrder))
    assert "cohort.min_merchants is 3" in finished.refusal
    assert finished.compressed is None


@pytest.mark.parametrize("lie", [lambda h: h - 1, lambda h: h[:-1], lambda h: h + 10**9])
def test_impossible_ranges_are_left_out_and_told(finisher, lie):
    ready = finisher()
    finished = ready.finished(
        changed(ready, "beta", lambda _, r: r.model_copy(update={"histograms": lie(r.histograms)}), RangesOrder)
    )
    assert finished.refusal == ""
    assert any("ranges: beta is left out" in event.line for event in ready.events)


def test_impossible_judgements_are_left_out(finisher):
    ready = finisher()
    boast = changed(ready, "beta", lambda _, r: r.model_copy(update={"candidate": r.candidate + 1}))
    assert ready.finished(boast).validation.candidate.num_rows < ready.finished().validation.candidate.num_rows


def test_pruned_weights_are_made_small_and_judged_beside_the_kept_ones(finisher):
    ready = finisher(model={"hidden": [8]})
    kept = ready.weights
    small = masked(kept, magnitude_mask(ready.spec, kept, 0.5))
    finished = ready.finished(pruning=Pruned(0.5, 4, StageModel(small)))
    assert finished.weights.tobytes() == small.tobytes()
    count = finished.compressed.report.kernels["hidden_0.kernel"]
    assert count.float_zeros == num_pruned(count.num_weights, 0.5)
    for shop in ready.shops.values():
        asked = [order for order in shop.shop.seen if isinstance(order, RangesOrder | CandidateOrder)]
        weights = {type(order): order.weights.tobytes() for order in asked}
        assert weights == {RangesOrder: small.tobytes(), CandidateOrder: kept.tobytes()}
    assert finished.to_json()["compression"]["pruning"]["sparsity"] == 0.5


def test_kept_weights_are_made_small_where_nothing_could_be_pruned(finisher):
    ready = finisher(model={"hidden": [8]})
    finished = ready.finished(pruning=Pruned(0.5, 4, None, reason="none of 4 rounds"))
    assert finished.weights.tobytes() == ready.weights.tobytes()
    assert finished.to_json()["compression"]["pruning"]["reason"] == "none of 4 rounds"
