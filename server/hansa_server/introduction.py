"""Who takes part: every connected node is asked for its merchant's name, and each name must be one node's alone.

| a node                                          | outcome                                                     |
|-------------------------------------------------|-------------------------------------------------------------|
| names a merchant of the roster                  | takes part                                                  |
| names another, or approved another agreement    | refused, and told as an event                               |
| names a merchant that another node names too    | neither takes part, unless one leaves before the wait is over |
| errs, is busy or does not answer                | is asked again, until the wait is over                      |
| computes otherwise than before an interruption  | refused: its replies would not be those of the run          |
| has a privacy ledger that went back             | refused, where that was agreed on                           |

The wait ends when the whole roster is there, or after cohort.wait_seconds. Where the agreement's roster is empty
anyone may come, and it ends as soon as cohort.min_merchants are there; merchants then stand in order of name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

from pydantic import TypeAdapter, ValidationError

from hansa_common.agreement import Agreement
from hansa_common.errors import RunFailedError, RunInterruptedError
from hansa_common.messages import IntroduceOrder, Introduction
from hansa_common.record_types import EVERYONE
from hansa_common.trust import MerchantName
from hansa_server.exchange import AWAY, GRACE_SECONDS, Addressed, Answer, Patience, Sent
from hansa_server.participants import LEFT_OUT, Merchant, Run
from hansa_server.run_events import MerchantIntroduced, MerchantsIntroduced, NodeRefused

# An introduction needs no work, but its process may have to start first.
INTRODUCTION_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 2.0
# When everyone is there, nodes that have not answered yet may still be somebody's double.
SETTLE_SECONDS: Final = 5.0
_PASSING: Final = frozenset(
    {"unreachable", "client-error", "deadline", "busy", "failed", "not-now", "not-signed", "replayed"}
)


@dataclass(frozen=True)
class Awaited:
    """Whom to wait for, and for how long at most: the wait ends when these `names` are there, `at_least` in all.

    Others of `roster` may come too; where it is empty, anyone may. Who is in `known` must compute as it did then.
    """

    roster: tuple[str, ...]
    names: frozenset[str]
    at_least: int
    wait_seconds: float
    known: Mapping[str, Merchant] = field(default_factory=dict)

    @classmethod
    def cohort(cls, agreement: Agreement) -> Self:
        """Those whom a run under this agreement begins with."""
        cohort = agreement.cohort
        return cls(agreement.roster, frozenset(agreement.roster), cohort.min_merchants, cohort.wait_seconds)


def introduce(run: Run) -> tuple[Merchant, ...]:
    """Wait for the run's merchants and return them in roster order.

    Raises:
        RunFailedError: fewer than cohort.min_merchants came within cohort.wait_seconds.
    """
    awaited = Awaited.cohort(run.agreement)
    door = _opened_door(run, awaited)
    merchants = door.admitted()
    if len(merchants) < awaited.at_least:
        raise RunFailedError(_too_few(awaited, door, merchants))
    _tell(run, awaited, merchants)
    return merchants


def reintroduce(run: Run, registered: tuple[Merchant, ...]) -> tuple[Merchant, ...]:
    """Wait for the merchants of a run that was interrupted, and return all of them, each with the node that it is back
    with: AWAY where it is not.

    Raises:
        RunInterruptedError: fewer than cohort.min_merchants are back within cohort.wait_seconds.
    """
    cohort, known = run.agreement.cohort, {merchant.name: merchant for merchant in registered}
    awaited = Awaited(tuple(known), frozenset(known), cohort.min_merchants, cohort.wait_seconds, known)
    door = _opened_door(run, awaited)
    merchants = door.admitted()
    if len(merchants) < awaited.at_least:
        raise RunInterruptedError(_too_few(awaited, door, merchants))
    _tell(run, awaited, merchants)
    nodes = {merchant.name: merchant.node_id for merchant in merchants}
    return tuple(replace(merchant, node_id=nodes.get(merchant.name, AWAY)) for merchant in registered)


def introduce_those_present(run: Run, awaited: Awaited) -> tuple[Merchant, ...]:
    """Wait in the same way, and return who came, be it nobody."""
    merchants = _opened_door(run, awaited).admitted()
    _tell(run, awaited, merchants)
    return merchants


def _opened_door(run: Run, awaited: Awaited) -> _Door:
    clock = run.exchange.clock
    until, patience, door = clock.now() + awaited.wait_seconds, Patience(clock), _Door(run, awaited)
    while not door.is_complete() and clock.now() < until:
        if door.look():
            patience.reset()
        else:
            patience.wait(until)
    return door


def _too_few(awaited: Awaited, door: _Door, merchants: tuple[Merchant, ...]) -> str:
    missing = _missing(awaited, merchants)
    return (
        f"{len(merchants)} merchants came within {awaited.wait_seconds:g} seconds, "
        f"cohort.min_merchants is {awaited.at_least}"
        + (f"; missing: {', '.join(missing)}" if missing else "")
        + (f"; refused: {'; '.join(sorted(door.refusals))}" if door.refusals else "")
    )


def _tell(run: Run, awaited: Awaited, merchants: tuple[Merchant, ...]) -> None:
    devices = tuple(dict.fromkeys(f"{merchant.backend} on {merchant.device}" for merchant in merchants))
    names = tuple(merchant.name for merchant in merchants)
    run.tell(MerchantsIntroduced(names, _missing(awaited, merchants), devices))


def _missing(awaited: Awaited, merchants: tuple[Merchant, ...]) -> tuple[str, ...]:
    present = {merchant.name for merchant in merchants}
    return tuple(name for name in awaited.roster if name in awaited.names - present)


class _Door:
    """Which nodes were asked, and what they said."""

    def __init__(self, run: Run, awaited: Awaited) -> None:
        self.refusals: set[str] = set()
        self._run = run
        self._awaited = awaited
        self._pending: dict[Sent, float] = {}
        self._ask_at: dict[int, float] = {}
        self._claims: dict[int, Merchant] = {}
        self._complete_since: float | None = None

    def look(self) -> bool:
        """Ask the nodes that are due, take what has come, and say whether anything has."""
        now, connected = self._run.exchange.clock.now(), self._run.exchange.node_ids()
        # A merchant that restarts comes back as another node; its old self must not stand in its way.
        self._claims = {node_id: claim for node_id, claim in self._claims.items() if node_id in connected}
        for node_id in connected:
            if now >= self._ask_at.get(node_id, now):
                self._send(node_id, now)
        answers = self._run.exchange.fetch(self._pending)
        answers += [Answer(sent, "unreachable") for sent in self._pending if sent.message_id is None]
        answered = {answer.sent for answer in answers}
        answers += [Answer(s, "deadline") for s, until in self._pending.items() if now >= until and s not in answered]
        for answer in answers:
            del self._pending[answer.sent]
            self._take(answer, now)
        return bool(answers)

    def is_complete(self) -> bool:
        """Whether there is nobody left to wait for."""
        present = {merchant.name for merchant in self.admitted()}
        awaited = {name for name in self._awaited.names if not self._run.is_left_out(name)}
        enough = present >= awaited and len(present) >= self._awaited.at_least
        now = self._run.exchange.clock.now()
        if not enough:
            self._complete_since = None
            return False
        self._complete_since = now if self._complete_since is None else self._complete_since
        return not self._pending or now >= self._complete_since + SETTLE_SECONDS

    def admitted(self) -> tuple[Merchant, ...]:
        """The merchants whose name one node alone claims, in roster order."""
        claims, roster = self._claims.values(), self._awaited.roster
        times = Counter(claim.name for claim in claims)
        by_name = {claim.name: claim for claim in claims if times[claim.name] == 1}
        return tuple(by_name[name] for name in roster or sorted(by_name) if name in by_name)

    def _send(self, node_id: int, now: float) -> None:
        header = {**self._run.header(EVERYONE), "sequence": 0, "deadline_seconds": INTRODUCTION_SECONDS}
        order = IntroduceOrder(**header, number=self._run.exchange.seals.introduction_number())
        ttl = INTRODUCTION_SECONDS + GRACE_SECONDS
        sent = self._run.exchange.send(Addressed(node_id, order), ttl)
        self._pending[sent] = now + ttl
        self._ask_at[node_id] = float("inf")

    def _take(self, answer: Answer, now: float) -> None:
        node_id = answer.sent.node_id
        if not isinstance(answer.reply, Introduction):
            self._refuse(node_id, answer.code or "wrong-kind", answer.refused_by)
            if answer.code in _PASSING:
                self._ask_at[node_id] = now + RETRY_SECONDS
            return
        reply = answer.reply
        if not self._is_expected(reply.merchant):
            self._refuse(node_id, "unknown-name", reply.merchant)
            return
        known = self._awaited.known.get(reply.merchant)
        if known is not None and (known.backend, known.device) != (reply.backend, reply.device):
            self._refuse(node_id, "other-device", reply.merchant)
            return
        if reply.merchant in _names(self._claims.values()):
            self._refuse(node_id, "name-claimed-twice", reply.merchant)
        self._run.tell_ledger(reply.merchant, answer)
        if self._run.is_left_out(reply.merchant):
            self._refuse(node_id, LEFT_OUT, reply.merchant)
            return
        self._claims[node_id] = Merchant(reply.merchant, node_id, reply.backend, reply.device)
        self._run.tell(MerchantIntroduced(node_id, reply.merchant, reply.hansa_version))

    def _is_expected(self, name: str) -> bool:
        if self._awaited.roster:
            return name in self._awaited.roster
        try:
            TypeAdapter(MerchantName).validate_python(name)
        except ValidationError:
            return False
        return True

    def _refuse(self, node_id: int, reason: str, name: str = "") -> None:
        refusal = NodeRefused(node_id, reason, name)
        if refusal.line not in self.refusals:
            self.refusals.add(refusal.line)
            self._run.tell(refusal)


def _names(merchants: Iterable[Merchant]) -> set[str]:
    return {merchant.name for merchant in merchants}
