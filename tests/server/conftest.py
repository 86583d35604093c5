"""Peers for the coordinator's tests: a Flower grid that carries real encoded messages to plain functions, and
merchants, honest and not, that are such functions. Time is a number that moves when someone waits.
And a finished run for the report's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.bootstrap import paired_bootstrap
from hansa_common.messages import (
    EvaluateOrder,
    EvaluateReply,
    IntroduceOrder,
    Introduction,
    RoundOrder,
    RoundReply,
    SharedMetrics,
    StatisticsOrder,
    StatisticsReply,
    decode,
    encode,
    message_hash,
)
from hansa_common.metrics import decision_threshold, metrics_from_histogram, score_histogram
from hansa_server.exchange import Clock

Respond = Callable[[bytes], object]


class ManualClock:
    """Seconds that pass only when someone waits; counts how often."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waits: list[float] = []
        self.clock = Clock(now=lambda: self.seconds, wait=self.pass_time)

    def pass_time(self, seconds: float) -> None:
        assert seconds > 0, "waiting for no time is a busy loop"
        self.waits.append(seconds)
        self.seconds += seconds


@dataclass
class Delivery:
    """What a node gives back: bytes, an Error, a whole RecordDict, or None for silence; `after` some seconds."""

    content: object
    after: float = 0.0
    from_node: int | None = None


@dataclass
class PeerGrid(Grid):
    """Flower's grid between the coordinator and functions from order bytes to a Delivery (or what is in one)."""

    peers: dict[int, Respond]
    time: ManualClock
    unreachable: set[int] = field(default_factory=set)
    orders: list[tuple[int, bytes]] = field(default_factory=list)
    most_delivered_at_once: int = 0
    _replies: dict[str, tuple[float, Message]] = field(default_factory=dict)
    _delivered: set[str] = field(default_factory=set)
    _ids: object = field(default_factory=itertools.count)

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def send_and_receive(self, *args, **kwargs):
        raise NotImplementedError("the coordinator polls for itself")

    def get_node_ids(self):
        return list(self.peers)

    def push_messages(self, messages):
        return [self._push(message) for message in messages]

    def _push(self, message):
        node_id, order = message.metadata.dst_node_id, message.content["hansa"]["message"]
        self.orders.append((node_id, order))
        if node_id in self.unreachable:
            return None
        message.metadata.__dict__["_message_id"] = f"message-{next(self._ids)}"
        given = self.peers[node_id](order)
        delivery = given if isinstance(given, Delivery) else Delivery(given)
        if delivery.content is not None:
            reply = Message(_content(delivery.content), reply_to=message)
            if delivery.from_node is not None:
                reply.metadata.__dict__["_src_node_id"] = delivery.from_node
            self._replies[message.metadata.message_id] = (self.time.seconds + delivery.after, reply)
        return message.metadata.message_id

    def pull_messages(self, message_ids):
        assert self._delivered.isdisjoint(message_ids), "Flower answers a second request for a reply with an error"
        ready = [i for i in message_ids if i in self._replies and self._replies[i][0] <= self.time.seconds]
        self.most_delivered_at_once = max(self.most_delivered_at_once, len(ready))
        self._delivered.update(ready)
        return [self._replies.pop(message_id)[1] for message_id in ready]


def _content(given):
    return RecordDict({"hansa": ConfigRecord({"message": given})}) if isinstance(given, bytes) else given


class Shop:
    """An honest merchant: logistic regression by gradient descent on rows of its own, in plain numpy.

    A subclass, or `changed` with a function of the honest reply, makes it dishonest.
    """

    def __init__(self, name: str, agreement: Agreement, *, num_train_rows: int = 60, seed: int = 0) -> None:
        self.name = name
        self.agreement = agreement
        self.num_train_rows = num_train_rows
        self.seen: list[object] = []
        self.replies: list[bytes] = []
        self._seed = [seed, *name.encode()]
        self._rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, order_bytes: bytes) -> object:
        order = decode(order_bytes)
        self.seen.append(order)
        reply = self.answer(order, {"merchant": self.name, "order_hash": message_hash(order_bytes)})
        self.replies.append(encode(reply))
        return self.replies[-1]

    def answer(self, order, header):
        match order:
            case IntroduceOrder():
                return Introduction(**header, hansa_version="0", backend="numpy", device="pencil")
            case StatisticsOrder():
                from hansa_common.statistics import statistics_length

                vector = np.zeros(statistics_length(self.agreement), np.int64)
                vector[:2] = self.num_train_rows, self.num_train_rows // 4
                return StatisticsReply(**header, statistics=vector, num_train_rows=self.num_train_rows)
            case RoundOrder():
                return RoundReply(
                    **header,
                    round=order.round,
                    num_examples=self.num_train_rows,
                    update=self.update(order),
                    control_delta=self.control_delta(order),
                    validation=self.histogram("validation", order.weights),
                    train_loss=0.5,
                )
            case EvaluateOrder():
                histogram = self.histogram(order.split, order.weights)
                metrics = metrics_from_histogram(histogram)
                own = SharedMetrics(num_test_rows=metrics.num_rows, roc_auc=metrics.roc_auc, pr_auc=metrics.pr_auc)
                return EvaluateReply(**header, histogram=histogram, metrics=own if order.split == "test" else None)
        raise AssertionError(order)

    def rows(self, split: str, num_params: int) -> tuple[np.ndarray, np.ndarray]:
        if split not in self._rows:
            num_rows = self.num_train_rows if split == "train" else max(4, self.num_train_rows // 10)
            random = np.random.default_rng([*split.encode(), *self._seed])
            inputs = random.normal(size=(num_rows, num_params - 1))
            labels = (inputs.sum(axis=1) + random.normal(size=num_rows) > 0).astype(int)
            labels[:2] = 0, 1
            self._rows[split] = inputs, labels
        return self._rows[split]

    def logits(self, split: str, weights: np.ndarray) -> np.ndarray:
        inputs, _ = self.rows(split, weights.size)
        return inputs @ weights[:-1].astype(float) + weights[-1]

    def histogram(self, split: str, weights: np.ndarray) -> np.ndarray:
        return score_histogram(self.logits(split, weights), self.rows(split, weights.size)[1])

    def update(self, order: RoundOrder) -> np.ndarray:
        inputs, labels = self.rows("train", order.weights.size)
        error = 1 / (1 + np.exp(-self.logits("train", order.weights))) - labels
        gradient = np.append(inputs.T @ error, error.sum()) / labels.size
        return (-self.agreement.training.plans[order.plan].learning_rate * gradient).astype(np.float32)

    def control_delta(self, order: RoundOrder) -> np.ndarray:
        return (0.1 * self.update(order)[: order.control.size] - order.control).astype(np.float32)


def changed(shop: Shop, change: Callable[[object, object], object], kind: type = RoundOrder) -> Respond:
    """The shop, but what it answers to one kind of order goes through `change(order, honest reply)`, whose result is
    sent: a record, bytes, an Error, a Delivery or None."""

    def respond(order_bytes: bytes) -> object:
        honest = shop(order_bytes)
        order = decode(order_bytes)
        if not isinstance(order, kind):
            return honest
        sent = change(order, decode(honest))
        return encode(sent) if hasattr(sent, "KIND") else sent

    return respond


VALUES = {
    "name": "shops",
    "task": "purchase",
    "seed": 3,
    "label": {"column": "buys"},
    "features": [
        {"kind": "numeric", "name": "amount", "low": 0.0, "high": 100.0},
        {"kind": "boolean", "name": "returning"},
    ],
    "model": {"hidden": [], "dropout": 0.0},
    "training": {"algorithm": "fedavg", "rounds": 3, "patience": 3, "plan": {"optimizer": "sgd", "learning_rate": 0.5}},
    "cohort": {"min_merchants": 2, "wait_seconds": 60.0, "deadline_seconds": 100.0},
    "roster": ["alpha", "beta", "gamma"],
}


def make_agreement(**sections: object) -> Agreement:
    """The tests' agreement with some sections changed, key by key."""
    values = {**VALUES}
    for section, value in sections.items():
        base = values.get(section)
        values[section] = {**base, **value} if isinstance(base, dict) and isinstance(value, dict) else value
    return validate_agreement(values, "the test's agreement")


class Federation:
    """A run over shops, some of them changed; node ids are not in roster order."""

    def __init__(self, world, manual_clock, agreement):
        self.world, self.time, self.agreement = world, manual_clock, agreement
        self.shops = {
            name: world.Shop(name, agreement, num_train_rows=400) for name in agreement.roster or VALUES["roster"]
        }
        self.events = []

    def run(self, peers=None, run_id="run-1", unreachable=()):
        names = {**self.shops, **(peers or {})}
        nodes = {900 - 7 * i: peer for i, peer in enumerate(names.values()) if peer is not None}
        self.nodes = dict(zip(names, (900 - 7 * i for i in range(len(names))), strict=True))
        self.grid = self.world.PeerGrid(nodes, self.time, set(unreachable))
        # Not at the top: it needs the whole of common, which the other tests of this folder do not.
        from hansa_server.federation import run_federation
        from hansa_server.run_state import RunState

        begun = RunState(run_id)
        return run_federation(self.grid, self.agreement, begun, on_event=self.events.append, clock=self.time.clock)

    def orders(self, name, kind):
        return [order for order in self.shops[name].seen if isinstance(order, kind)]

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    # Flower gives every process of an app its identity; a message takes its sender from there.
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def manual_clock() -> ManualClock:
    return ManualClock()


@dataclass(frozen=True)
class World:
    """What tests take from here: `importlib` import mode has no way to import a helper module."""

    PeerGrid = PeerGrid
    Delivery = Delivery
    Shop = Shop
    Error = Error
    changed = staticmethod(changed)
    agreement = staticmethod(make_agreement)


@pytest.fixture(scope="session")
def world() -> World:
    return World()


@pytest.fixture
def federation(world, manual_clock):
    return lambda **sections: Federation(world, manual_clock, world.agreement(**sections))


NOISE = {"federated": 0.5, "local": 1.1, "pooled": 0.45}
HARMED = "Quayside Books"
MERCHANTS = ("Alder Lane Grocers", "Bergen Fishworks", "Cinnamon and Salt", "Gotland Outdoor Equipment", HARMED)


def merchant_rows(rng, num_rows):
    """Labels, and the logits that each party's model gives: the truth blurred by more or less noise."""
    truth = rng.normal(-2.2, 1.6, num_rows)
    labels = rng.random(num_rows) < 1 / (1 + np.exp(-truth))
    return labels, {party: truth + rng.normal(0, noise, num_rows) for party, noise in NOISE.items()}


def areas(logits, labels):
    metrics = metrics_from_histogram(score_histogram(logits, labels))
    return {"roc_auc": metrics.roc_auc, "pr_auc": metrics.pr_auc}


def merchant_part(rng, labels, logits):
    gain = paired_bootstrap(logits["federated"], logits["local"], labels, rng=rng, resamples=50)
    return {
        "num_train_rows": 4 * labels.size,
        "num_test_rows": int(labels.size),
        "num_test_positives": int(labels.sum()),
        **{party: areas(logits[party], labels) for party in NOISE},
        "gain": {measure: interval.to_json() for measure, interval in gain.items()},
        "threshold": decision_threshold(score_histogram(logits["federated"], labels)),
        "quality": {
            "num_rows": int(labels.size) * 5,
            "num_positives": int(labels.sum()) * 5,
            "duplicates": int(rng.integers(1, 40)),
            "duplicates_removed": True,
            "missing": {"ProductPrice": int(rng.integers(30)), "Country": int(rng.integers(9)), "Weekday": 0},
            "unseen_categories": {"Browser": int(rng.integers(5))},
            "constant": [],
        },
    }


def round_part(rng, number, plan):
    level = 1 - np.exp(-number / 5)
    return {
        "round": number,
        "plan": plan,
        "seconds": float(rng.uniform(0.5, 0.8)),
        "cohort": list(MERCHANTS),
        "dropped": {"Bergen Fishworks": "deadline"} if number in {3, 7, 8} else {},
        "aggregated": True,
        "validation": None if number == 1 else {
            "roc_auc": float(0.6 + 0.27 * level - 0.03 * plan + rng.normal(0, 0.002)),
            "pr_auc": float(0.2 + 0.34 * level - 0.06 * plan + rng.normal(0, 0.006)),
        },
        "train_loss": float(0.6 - 0.3 * level),
        "bytes_received": 524_288,
        "bytes_sent": 1_310_720,
    }  # fmt: skip


@pytest.fixture(scope="session")
def finished_run():
    """A simulated run with baselines in the shape of metrics.json; one merchant is better off alone."""
    rng = np.random.default_rng(7)
    rows = {name: merchant_rows(rng, 500 + 350 * place) for place, name in enumerate(MERCHANTS)}
    for party, other in (("federated", "local"), ("local", "federated")):
        rows[HARMED][1][f"swapped {party}"] = rows[HARMED][1][other]
    harmed = rows[HARMED][1]
    harmed["federated"], harmed["local"] = harmed.pop("swapped federated"), harmed.pop("swapped local")
    labels = np.concatenate([labels for labels, _ in rows.values()])
    logits = {party: np.concatenate([logits[party] for _, logits in rows.values()]) for party in NOISE}
    plans = [0] * 4 + [1] * 4 + [0] * 14
    gap = paired_bootstrap(logits["federated"], logits["pooled"], labels, rng=rng, resamples=50)
    return {
        "agreement_fingerprint": "3f0c" * 16,
        "agreement_name": "Five shops of the harbour",
        "task": "purchase",
        "label": "Revenue",
        "features": ["ProductPrice", "Country", "Weekday", "Browser"],
        "model": {"hidden": [64, 32], "loss": "binary_crossentropy", "focal_gamma": 2.0},
        "seed": 0,
        "hansa_version": "0.1.0",
        "run_id": "run-0001",
        "best_round": 18,
        "plan": {"algorithm": "scaffold", "optimizer": "sgd", "learning_rate": 0.1, "batch_size": 32},
        "rounds": [round_part(rng, number, plan) for number, plan in enumerate(plans, 1)],
        "federated": metrics_from_histogram(score_histogram(logits["federated"], labels)).to_json(),
        "pooled": metrics_from_histogram(score_histogram(logits["pooled"], labels)).to_json(),
        "local": {"roc_auc": 0.8, "pr_auc": 0.5},
        "merchants": {name: merchant_part(rng, *part) for name, part in rows.items()},
        "intervals": {"federated_minus_pooled": {measure: interval.to_json() for measure, interval in gap.items()}},
        "data": {"silos": "TrafficType", "split": "stratified", "test_share": 0.2},
    }
