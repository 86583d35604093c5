"""Who carries an attack out: what answers the coordinator in an honest merchant's place.

An attacker has the honest merchant's own trainer, over rows that the attack may have changed, lets it answer, and
changes what it says before it leaves: in the clear the reply (`Attacker`), under masks what is to be masked
(`LyingSums`); the coordinator gets whole records in the right name, to the right order. Colluders share one circle,
which asks the trainer of each of them at once. Only for algorithms without variates: a merchant that lies about its
update cannot keep SCAFFOLD's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from hansa_client.data import MerchantTable
from hansa_client.guarded_trainer import Worker, in_process
from hansa_client.halting import Halt
from hansa_client.masked_memory import SumMemory
from hansa_client.masked_sums import MaskedSums
from hansa_client.private_rounds import seeded_noise
from hansa_client.programs import Programs
from hansa_client.trainer_link import Trainer
from hansa_common.agreement import Agreement
from hansa_common.errors import MessageError
from hansa_common.messages import EvaluateOrder, EvaluateReply, RoundOrder, RoundReply, StatisticsReply, decode, encode
from hansa_common.randomness import generator
from hansa_common.record_types import Order
from hansa_common.secure_keys import development_identity
from hansa_common.secure_messages import MaskableOrder, MaskedReply
from hansa_common.vectors import Vector
from hansa_simulations.attacks import Attack, Colluders, Memory, bent
from hansa_simulations.scenario import mask_bytes, simulated_merchants, simulated_sums

Figures = StatisticsReply | RoundReply | EvaluateReply
_NOBODY_WAITS: Final = "0" * 64


class Circle:
    """The trainers of several colluders, and what these agreed to send in each round. `workers` may be filled later."""

    def __init__(self, attack: Colluders, members: tuple[str, ...], workers: Mapping[str, Worker]) -> None:
        self._attack = attack
        self._members = members
        self._workers = workers
        self._agreed: dict[tuple[str, int], Vector] = {}

    def update(self, order: RoundOrder) -> Vector:
        """What every member answers this round's order with."""
        round_ = (order.stage, order.round)
        if round_ not in self._agreed:
            self._agreed = {round_: self._attack.agreed_update([self._honest(name, order) for name in self._members])}
        return self._agreed[round_]

    def _honest(self, name: str, order: RoundOrder) -> Vector:
        # Among themselves they tell it in the clear.
        own = order.model_copy(update={"recipient": name, "masking": None})
        reply = decode(self._workers[name].work(own, _NOBODY_WAITS, Halt(np.inf, lambda: False)))
        if not isinstance(reply, RoundReply):
            raise MessageError(f"{name} answered a round with a {reply.KIND}")
        return reply.update


class Liar:
    """What one dishonest merchant says in the place of what it found."""

    def __init__(self, attack: Attack, agreement: Agreement, merchant: str, circle: Circle | None = None) -> None:
        self._attack = attack
        self._limits = agreement.cohort
        self._circle = circle
        self._memory = Memory()
        self._rng = attack_generator(agreement, merchant, "replies")
        self._num_rows: int | None = None

    def told(self, asked: Order, reply: Figures) -> Figures:
        """The reply to say; the same where the attack leaves its kind alone."""
        match reply:
            case StatisticsReply():
                told = self._attack.statistics(reply, self._limits.max_examples)
                self._num_rows = told.num_train_rows
                return told
            case RoundReply() if isinstance(asked, RoundOrder):
                self._memory.weights = [*self._memory.weights[-1:], asked.weights]
                self._memory.updates.append(reply.update)
                claimed = reply.model_copy(update={"num_examples": self._num_rows or reply.num_examples})
                sent = self._sent(asked, reply.update)
                return bent(self._attack, asked, claimed, sent, self._limits.max_update_norm)
            case EvaluateReply() if isinstance(asked, EvaluateOrder) and asked.split == "validation":
                false = self._attack.validation(reply.histogram, None)
                return reply.model_copy(update={"histogram": false})
        return reply

    def _sent(self, order: RoundOrder, update: Vector) -> Vector:
        if self._circle is not None:
            return self._circle.update(order)
        return self._attack.update(update, self._memory, self._rng)


class Attacker:
    """A dishonest merchant in the clear; implements trainer_link.Trainer."""

    def __init__(self, honest: Trainer, liar: Liar) -> None:
        self._honest = honest
        self._liar = liar

    def answer(self, order: bytes) -> bytes:
        """The reply that the coordinator gets."""
        answer = self._honest.answer(order)
        asked, reply = decode(order), decode(answer)
        if isinstance(asked, Order) and isinstance(reply, Figures):
            return encode(self._liar.told(asked, reply))
        return answer


class LyingSums(MaskedSums):
    """A dishonest merchant's part in masked sums: what it masks is what it says, and nobody sees that it does."""

    def __init__(self, agreement: Agreement, merchant: str, liar: Liar) -> None:
        noise = seeded_noise(agreement.seed, merchant)
        identity, draw = development_identity(merchant), mask_bytes(agreement, merchant)
        super().__init__(agreement, merchant, identity, SumMemory(), draw, noise)
        self._liar = liar

    def masked(self, order: MaskableOrder, reply: Figures) -> MaskedReply:
        """As any merchant's."""
        return super().masked(order, self._liar.told(order, reply))


def attacked_trainers(
    agreement: Agreement,
    tables: Mapping[str, MerchantTable],
    programs: Programs,
    attackers: tuple[str, ...],
    attack: Attack,
) -> dict[str, Trainer]:
    """Everyone's trainer, in roster order, the attackers' behind the attack; `tables` are what each of them trains on
    (attack.rows says what an attacker does).
    """
    workers: dict[str, Worker] = {}
    circle = Circle(attack, attackers, workers) if isinstance(attack, Colluders) else None
    liars = {name: Liar(attack, agreement, name, circle) for name in attackers}
    is_masked = agreement.secure_aggregation.is_on

    def sums_of(agreement: Agreement, name: str) -> MaskedSums | None:
        return (
            LyingSums(agreement, name, liars[name]) if is_masked and name in liars else simulated_sums(agreement, name)
        )

    workers |= simulated_merchants(agreement, tables, programs, sums_of=sums_of)
    honest = in_process(agreement, workers)
    if is_masked:
        return dict(honest)
    return {name: Attacker(trainer, liars[name]) if name in liars else trainer for name, trainer in honest.items()}


def attack_generator(agreement: Agreement, merchant: str, purpose: str) -> np.random.Generator:
    """Where an attacker's own random choices come from."""
    return generator(agreement.seed, "attack", merchant, purpose)
