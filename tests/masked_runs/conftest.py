"""Five shops under an agreement that masks everything, run by the real coordinator over the merchants' real trainers;
and a coordinator by hand, who asks those trainers whatever it likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from flwr.app import Error, Message

from hansa_client.data import merchant_table
from hansa_client.guarded_trainer import in_process
from hansa_client.masked_memory import SumMemory
from hansa_client.masked_sums import MaskedSums
from hansa_client.programs import Programs
from hansa_common.agreement import validate_agreement
from hansa_common.messages import IntroduceOrder, Refusal, decode, encode
from hansa_common.secure_agreement import identities_of, thresholds_of
from hansa_common.secure_keys import KeyHistory, Session, development_identity
from hansa_common.secure_messages import KeysOrder, Masking, UnmaskOrder
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState
from hansa_server.unmasking import MaskedSum, gather_keys, gather_offers
from hansa_simulations.grid import LocalGrid, server_identity
from hansa_simulations.scenario import simulated_merchants

NUM_ROWS = {"alder": 120, "birch": 260, "cedar": 75, "dogwood": 150, "elm": 90}
PLAN = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 16, "local_steps": 9}
OCTETS = np.zeros(0, np.uint8)


def agreement_with(**changes):
    values = {
        "name": "Five shops",
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 100, "missing": "refuse"},
            {"kind": "boolean", "name": "member", "missing": "refuse"},
        ],
        "model": {"hidden": [], "dropout": 0.0, "l2": 1e-3},
        "training": {"algorithm": "fedavg", "rounds": 4, "plan": PLAN},
        "cohort": {"min_merchants": 3, "max_update_norm": 5, "max_examples": 1000},
        "privacy": {"min_count": 1, "min_positives": 1},
        "secure_aggregation": {"protocol": "double-masking"},
        "roster": list(NUM_ROWS),
    }
    return validate_agreement({**values, **changes}, "the test")


def in_the_clear(agreement):
    values = agreement.model_dump(mode="json")
    return validate_agreement({**values, "secure_aggregation": {"protocol": "none"}}, "the test")


def rows_of(merchant):
    random = np.random.default_rng([*merchant.encode()])
    size, mean = NUM_ROWS.get(merchant, 100), 20 + 10 * [*NUM_ROWS, merchant].index(merchant)
    amount = np.clip(random.normal(mean, 15, size), 0, 100).round(2)
    member = random.integers(0, 2, size)
    buys = random.random(size) < 1 / (1 + np.exp(2.0 - amount / 25 - member))
    columns = {"amount": amount, "member": member, "buys": buys.astype(int)}
    return pd.DataFrame({name: np.asarray(values).astype(str) for name, values in columns.items()})


def workers_for(agreement, programs):
    tables = {name: merchant_table(rows_of(name), agreement, name, name) for name in agreement.roster}
    return simulated_merchants(agreement, tables, programs.sharing(agreement))


@dataclass(frozen=True)
class Fault:
    """Where orders go under: those that `hits` says, before their merchant sees them, or with its answer."""

    hits: Callable[[object], bool]
    is_before: bool = False


class FaultyGrid(LocalGrid):
    """Loses what its fault hits, and keeps what went over it, as records."""

    def __init__(self, trainers, fault=None):
        super().__init__(trainers)
        self.fault, self.orders, self.replies = fault, [], []

    def _answered(self, message):
        order = decode(message.content["hansa"]["message"])
        self.orders.append(order)
        is_hit = self.fault is not None and self.fault.hits(order)
        if is_hit and self.fault.is_before:
            return self._lost(message)
        reply = super()._answered(message)
        self.replies.append(decode(reply.content["hansa"]["message"]))
        return self._lost(message) if is_hit else reply

    def _lost(self, message):
        lost = Message(Error(2, "lost"), reply_to=message)
        lost.metadata.__dict__["_message_id"] = f"lost-{len(self.orders)}"
        lost.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        return lost


@dataclass
class Ran:
    """A finished run, what was told, and what went over the grid."""

    result: object
    events: list
    grid: FaultyGrid


def run(agreement, programs, fault=None, *, workers=None, trainers=None, begun=None, keep=lambda _: None):
    grid = FaultyGrid(trainers or in_process(agreement, workers or workers_for(agreement, programs)), fault)
    events = []
    with server_identity():
        result = run_federation(grid, agreement, begun or RunState("run-1"), on_event=events.append, keep=keep)
    return Ran(result, events, grid)


@dataclass
class Coordinator:
    """A coordinator by hand, of whatever intentions: it asks the trainers, behind their boundary, what a test says."""

    agreement: object
    trainers: dict
    sequence: int = 0
    history: KeyHistory = field(default_factory=KeyHistory)

    def __post_init__(self):
        for name in self.trainers:
            self.ask(name, IntroduceOrder, sequence=0)

    def session(self, number):
        return Session(
            self.agreement.fingerprint, "run-1", number, self.agreement.roster, thresholds_of(self.agreement)
        )

    def next_exchange(self):
        self.sequence += 1

    def order(self, name, kind, **fields):
        header = {"run_id": "run-1", "sequence": self.sequence, "recipient": name, "deadline_seconds": 600.0}
        return kind(**{**header, "fingerprint": self.agreement.fingerprint, **fields})

    def ask(self, name, kind, **fields):
        return decode(self.trainers[name].answer(encode(self.order(name, kind, **fields))))

    def refused(self, name, kind, **fields):
        reply = self.ask(name, kind, **fields)
        assert isinstance(reply, Refusal), reply
        return reply.code

    def keys(self, number):
        self.next_exchange()
        replies = {name: self.ask(name, KeysOrder, sum=number).keys.tobytes() for name in self.trainers}
        return gather_keys(self.session(number), identities_of(self.agreement), KeyHistory(), replies)

    def offers(self, number):
        keys, table = self.keys(number), None
        self.next_exchange()
        table = np.frombuffer(keys.table(), np.uint8)
        replies = {
            name: self.ask(name, UnmaskOrder, sum=0, in_sum=(), next_sum=number, keys=table).shares.tobytes()
            for name in self.trainers
        }
        return gather_offers(keys, replies)

    def masking(self, offers, name, next_sum=0):
        shares = np.frombuffer(offers.inbox(name), np.uint8)
        return {"masking": Masking(sum=offers.session.round, next_sum=next_sum), "shares": shares}

    def closed(self, offers, kind, fields_of, num_elements):
        """The masked sum over everyone's answers to the order whose fields are `fields_of(name)`."""
        self.next_exchange()
        adding = MaskedSum(offers, num_elements)
        for name in self.trainers:
            reply = self.ask(name, kind, **fields_of(name), **self.masking(offers, name))
            adding.add(name, reply.vector)
        return adding.close()

    def opening(self, name, closed, in_sum=None):
        asked = closed.in_sum if in_sum is None else in_sum
        number = closed.offers.session.round
        return self.ask(name, UnmaskOrder, sum=number, in_sum=asked, next_sum=0, keys=OCTETS)


@pytest.fixture(scope="session")
def programs():
    return Programs(agreement_with(), capacity_rows=max(NUM_ROWS.values()))


@pytest.fixture
def coordinator(programs, request):
    agreement = agreement_with(**getattr(request, "param", {}))
    return Coordinator(agreement, in_process(agreement, workers_for(agreement, programs)))


@pytest.fixture(scope="session")
def five(programs):
    """The world's makers; a module's worth of functions."""

    def sums(agreement, name, memory=None):
        return MaskedSums(agreement, name, development_identity(name), memory or SumMemory())

    return SimpleNamespace(
        names=tuple(NUM_ROWS),
        plan=PLAN,
        agreement=agreement_with,
        in_the_clear=in_the_clear,
        rows=rows_of,
        workers=lambda agreement: workers_for(agreement, programs),
        run=lambda agreement, fault=None, **how: run(agreement, programs, fault, **how),
        fault=Fault,
        grid=FaultyGrid,
        sums=sums,
    )
