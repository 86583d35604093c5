"""The boundary round a merchant's trainer: every order comes in through here, and every reply goes out.

in     signed (seals.py) -> one whole order (messages.py) -> permitted by the agreement (policy.py), approved
       (approvals.py), within this merchant's own policy (merchant_policy.py) -> not taken before (order_log.py) ->
       charged, where it costs privacy (ledger.py) -> noted (audit.py) -> the trainer
out    one record of the kind asked for (departures.py), within the policy -> kept for who asks again -> on record as
       answered -> stamped with the ledger's state (stamping.py) -> noted -> signed

- Nothing is computed for an order that any of these refuses; what cannot be noted does not leave, but for a refusal.
  Refusals, and answers given again, are noted as far as the audit has room for them.
- An order is obeyed once; asked again, the merchant gives the answer that it gave, refusals among them. One that costs
  more privacy than is left is refused and not kept: it is obeyed if it is asked again once more is allowed.
- A failure leaves as a code, its text stays in this merchant's log; an answer always comes, and nothing is raised.
- One order at a time, in the order they came; a few wait for their turn (turns.py), more are refused as busy.
- Work stops at its deadline, and when who asked has gone (halting.py); then the order is obeyed if it is asked again.
  Work that does not stop ends the process, and the order is refused from then on (watchdog.py).

It is the same object in a simulation, where nothing is signed and nothing kept, and in a merchant's own process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Protocol, Self, get_args

from hansa_client.approvals import Approvals
from hansa_client.audit import AUDIT_NAME, Audit, Decision
from hansa_client.departures import check_departure
from hansa_client.halting import Halt
from hansa_client.ledger import Ledger
from hansa_client.ledger_account import Limit, epsilon_of
from hansa_client.ledger_entries import Charge
from hansa_client.merchant_files import MerchantFiles
from hansa_client.merchant_policy import MerchantPolicy
from hansa_client.order_log import ORDERS_NAME, OrderLog
from hansa_client.policy import Policy
from hansa_client.seals import Seals, Unsealed, seals_for
from hansa_client.turns import Turns
from hansa_client.watchdog import STACKS_NAME, Watchdog
from hansa_common.agreement import Agreement
from hansa_common.errors import HansaError, MessageError, PolicyError, UsageError
from hansa_common.messages import IntroduceOrder, Refusal, RoundOrder, decode, encode, message_hash
from hansa_common.privacy_costs import cost_of
from hansa_common.record_types import Order
from hansa_common.sealing import unopened_hash
from hansa_common.stamping import stamped

MAX_WAITING: Final = 2
_CODES: Final = get_args(Refusal.model_fields["code"].annotation)

_log = logging.getLogger(__name__)


class Worker(Protocol):
    """Who does what a permitted order asks."""

    def work(self, order: Order, order_hash: str, halt: Halt) -> bytes:
        """The encoded reply to an order; asks `halt` between two chunks of work.

        Raises:
            HansaError: it cannot be done, or not in time.
        """
        ...


@dataclass(frozen=True)
class Boundary:
    """What stands between the coordinator and one merchant's trainer. `approvals` is None where starting with the
    agreement's file is the approval; `is_stopping` says that this process is about to end. `watching` is a Watchdog's,
    or nobody's.
    """

    agreed: Policy
    seals: Seals = field(default_factory=Unsealed)
    own: Callable[[], MerchantPolicy] = MerchantPolicy
    approvals: Approvals | None = None
    log: OrderLog = field(default_factory=OrderLog)
    ledger: Ledger = field(default_factory=Ledger)
    audit: Audit = field(default_factory=Audit)
    clock: Callable[[], datetime] = datetime.now
    is_stopping: Callable[[], bool] = lambda: False
    watching: Callable[[float, Callable[[], object]], AbstractContextManager[None]] = lambda *_: nullcontext()

    @classmethod
    def in_process(cls, agreement: Agreement, merchant: str) -> Self:
        """The boundary of a simulated merchant: the agreement's rules, and nothing that outlives the process."""
        return cls(Policy(agreement, merchant))

    @classmethod
    def of_files(
        cls, agreement: Agreement, merchant: str, files: MerchantFiles, is_stopping: Callable[[], bool]
    ) -> Self:
        """The boundary of a merchant's own process, which holds the state folder for itself.

        Raises:
            HansaError: a key, the policy, the record of orders, the ledger or the audit is not as it must be.
        """
        policy = files.policy_file()
        policy.current()
        return cls(
            Policy(agreement, merchant),
            seals=seals_for(agreement, merchant, files.state),
            own=policy.current,
            approvals=None if agreement.trust is None else Approvals(files.state),
            log=OrderLog(files.state / ORDERS_NAME),
            ledger=files.opened_ledger(agreement),
            audit=Audit(files.state / AUDIT_NAME),
            is_stopping=is_stopping,
            watching=Watchdog(files.state / STACKS_NAME).watching,
        )

    @property
    def coordinator(self) -> str:
        """The public key of who signs orders; '' where nobody does."""
        trust = self.agreed.agreement.trust
        return "" if trust is None else trust.coordinator

    def permitted(self, order: Order) -> MerchantPolicy:
        """The policy that permits an order.

        Raises:
            PolicyError: the agreement or this merchant does not permit it.
        """
        self.agreed.verify(order)
        if self.approvals is not None:
            self.approvals.verify(order.fingerprint)
        try:
            own = self.own()
        except UsageError as error:
            raise PolicyError(str(error)) from error
        own.verify(order, self.agreed.agreement, self.clock().time())
        return own

    def budget_lines(self) -> list[str]:
        """What was spent of the epsilon that was agreed on; nothing without [privacy.dp]."""
        agreement, dp = self.agreed.agreement, self.agreed.agreement.privacy.dp
        if dp is None:
            return []
        spent = epsilon_of(self.ledger.spent_under(agreement.fingerprint), dp.delta)
        return [f"epsilon {spent:g} of {dp.epsilon:g} is spent under this agreement, at delta {dp.delta:g}"]

    def charge_for(self, order: Order, order_hash: str) -> Charge | None:
        """What an order is charged; None without [privacy.dp], where nothing is promised.

        Raises:
            PolicyError: it is of a kind that declares no cost.
        """
        agreement, cost = self.agreed.agreement, cost_of(order, self.agreed.agreement)
        dp = agreement.privacy.dp
        if dp is None:
            return None
        return Charge(
            order_hash=order_hash,
            run=order.run_id,
            agreement=order.fingerprint,
            coordinator=agreement.name if agreement.trust is None else agreement.trust.coordinator,
            kind=order.KIND,
            mechanisms=cost.mechanisms,
            why=cost.what,
            agreed=Limit(dp.epsilon, dp.delta, f"the agreement allows epsilon {dp.epsilon:g} for all runs under it"),
        )


@dataclass(frozen=True)
class _Asked:
    """An order as it came, when that was, and what the audit says of it; `is_cancelled` says that nobody waits for its
    answer any more, or that this process is about to end.
    """

    sealed: bytes
    received: float
    is_cancelled: Callable[[], bool]
    facts: dict[str, Any]

    @property
    def order_hash(self) -> str:
        return str(self.facts["order"])


@dataclass(frozen=True)
class _Answer:
    """A reply that is ready to leave, and what the audit says of it; `is_of_work` that it knows of the work already."""

    message: bytes
    decision: Decision
    code: str = ""
    reason: str = ""
    is_of_work: bool = False


def in_process(agreement: Agreement, workers: Mapping[str, Worker]) -> dict[str, GuardedTrainer]:
    """The trainers of simulated merchants, by name, each behind a boundary of its own."""
    return {name: GuardedTrainer(worker, Boundary.in_process(agreement, name)) for name, worker in workers.items()}


class GuardedTrainer:
    """A merchant's trainer behind its boundary; implements trainer_link.Trainer, from as many threads as there are."""

    def __init__(self, worker: Worker, boundary: Boundary) -> None:
        self._worker = worker
        self._boundary = boundary
        self._merchant = boundary.agreed.merchant
        self._turns = Turns(MAX_WAITING)

    def answer(self, order: bytes, has_gone: Callable[[], bool] = lambda: False) -> bytes:
        """Do what a permitted order asks, or refuse with a code; `has_gone` says that nobody waits for the answer any
        more. Never raises.
        """
        # Until it is opened, whoever sent it may have put a real order's message under a wrong seal, or under none.
        facts = {"order": unopened_hash(order)}
        asked = _Asked(order, time.monotonic(), lambda: has_gone() or self._boundary.is_stopping(), facts)
        answer = self._attempt(asked, lambda: self._answer_in_turn(asked))
        left = self._attempt(asked, lambda: self._noted(self._stamped(answer), asked))
        return self._boundary.seals.close_reply(left.message)

    def _answer_in_turn(self, asked: _Asked) -> _Answer:
        with self._turns.taken(asked.is_cancelled):
            order = self._opened(asked)
            own = self._boundary.permitted(order)
            charge = self._boundary.charge_for(order, asked.order_hash)
            log, ledger = self._boundary.log, self._boundary.ledger
            if isinstance(order, IntroduceOrder):
                is_new = log.begin(order.run_id, order.number, self._boundary.coordinator)
                return self._noted_work(asked, order, own) if is_new else self._worked(asked, order, own)
            stored = log.take(order, asked.order_hash)
            if stored is not None:
                # Kept by a process that was killed before it said so.
                ledger.answered(asked.order_hash)
                return _Answer(stored, "stored")
            if charge is not None:
                ledger.charge(charge, own.limit)
            answer = self._noted_work(asked, order, own)
            # What was refused only because this process ends, or nobody waited, is to be obeyed the next time.
            if answer.decision == "answered" or not asked.is_cancelled():
                self._keep(asked, answer)
            return answer

    def _keep(self, asked: _Asked, answer: _Answer) -> None:
        """Keep the answer for who asks again; what was charged for it is then spent."""
        self._boundary.log.keep(asked.order_hash, answer.message)
        self._boundary.ledger.answered(asked.order_hash)

    def _opened(self, asked: _Asked) -> Order:
        """The order, once its facts are known."""
        message = self._boundary.seals.open_order(asked.sealed)
        asked.facts["order"] = message_hash(message)
        order = decode(message)
        if not isinstance(order, Order):
            raise MessageError(f"{order.KIND} is not an order")
        asked.facts.update(run=order.run_id, sequence=order.sequence, kind=order.KIND)
        asked.facts.update({"round": order.round} if isinstance(order, RoundOrder) else {})
        return order

    def _noted_work(self, asked: _Asked, order: Order, own: MerchantPolicy) -> _Answer:
        self._boundary.audit.asked(**asked.facts, num_bytes=len(asked.sealed))
        return replace(self._worked(asked, order, own), is_of_work=True)

    def _worked(self, asked: _Asked, order: Order, own: MerchantPolicy) -> _Answer:
        halt = Halt(asked.received + order.deadline_seconds, asked.is_cancelled)

        def work() -> _Answer:
            message = self._worker.work(order, asked.order_hash, halt)
            agreement = self._boundary.agreed.agreement
            own.verify_reply(check_departure(message, order, asked.order_hash, self._merchant, agreement))
            return _Answer(message, "answered")

        with self._boundary.watching(halt.deadline - time.monotonic(), lambda: self._give_up(asked, order)):
            return self._attempt(asked, work)

    def _give_up(self, asked: _Asked, order: Order) -> None:
        """Refuse for good what this process is about to end for."""
        answer = self._refused(asked, "failed", "its work hung, and the trainer was ended")
        if not isinstance(order, IntroduceOrder):
            self._keep(asked, answer)
        self._noted(replace(answer, is_of_work=True), asked)

    def _stamped(self, answer: _Answer) -> _Answer:
        """The answer with what the ledger's state is now."""
        state = self._boundary.ledger.state
        return answer if state is None else replace(answer, message=stamped(answer.message, str(state)))

    def _noted(self, answer: _Answer, asked: _Asked) -> _Answer:
        audit = self._boundary.audit
        note = audit.answered if answer.is_of_work else audit.set_aside
        told = {**asked.facts, "reply": message_hash(answer.message), "num_bytes": len(answer.message)}
        note(answer.decision, code=answer.code, reason=answer.reason, **told)
        return answer

    def _attempt(self, asked: _Asked, action: Callable[[], _Answer]) -> _Answer:
        """What the action comes to, or its failure as a refusal."""
        code, reason = "failed", ""
        try:
            return action()
        except HansaError as error:
            _log.error("%s refuses order %s: %s", self._merchant, asked.order_hash[:12], error)
            code = error.code if error.code in _CODES else "failed"
            # What other errors say can hold a row.
            reason = str(error) if isinstance(error, PolicyError | MessageError) else ""
        except OSError as error:
            # A full disk, mostly: what was to be on it before the answer leaves is not.
            _log.error("%s cannot answer order %s: %s", self._merchant, asked.order_hash[:12], error)
        except Exception:  # noqa: BLE001 - the trust boundary: a traceback can hold a row, so none may pass
            _log.exception("%s failed at order %s", self._merchant, asked.order_hash[:12])
        return self._refused(asked, code, reason)

    def _refused(self, asked: _Asked, code: str, reason: str) -> _Answer:
        state = self._boundary.ledger.state
        values = {"merchant": self._merchant, "order_hash": asked.order_hash, "code": code}
        values |= {} if state is None else {"ledger": str(state)}
        return _Answer(encode(Refusal.model_validate(values)), "refused", code, reason)
