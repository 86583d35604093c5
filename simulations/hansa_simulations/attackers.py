"""Who carries an attack out: a trainer that answers the coordinator in an honest merchant's place.

An attacker has the honest merchant's own trainer, over rows that the attack may have changed, lets it answer, and
changes what it says before it leaves; the coordinator gets whole records in the right name, to the right order.
Colluders share one circle, which asks the trainer of each of them at once. Only for algorithms without variates: a
merchant that lies about its update cannot keep SCAFFOLD's state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hansa_client.guarded_trainer import Worker, in_process
from hansa_client.halting import Halt
from hansa_client.trainer_link import Trainer
from hansa_common.agreement import Agreement
from hansa_common.errors import MessageError
from hansa_common.messages import EvaluateOrder, EvaluateReply, RoundOrder, RoundReply, StatisticsReply, decode, encode
from hansa_common.randomness import generator
from hansa_common.vectors import Vector
from hansa_simulations.attacks import Attack, Colluders, Memory, bent

_NOBODY_WAITS = "0" * 64


class Circle:
    """The trainers of several colluders, and what these agreed to send in each round."""

    def __init__(self, attack: Colluders, workers: Mapping[str, Worker]) -> None:
        self._attack = attack
        self._workers = workers
        self._agreed: dict[tuple[str, int], Vector] = {}

    def update(self, order: RoundOrder) -> Vector:
        """What every member answers this round's order with."""
        round_ = (order.stage, order.round)
        if round_ not in self._agreed:
            self._agreed = {round_: self._attack.agreed_update([self._honest(name, order) for name in self._workers])}
        return self._agreed[round_]

    def _honest(self, name: str, order: RoundOrder) -> Vector:
        own = order.model_copy(update={"recipient": name})
        reply = decode(self._workers[name].work(own, _NOBODY_WAITS, Halt(np.inf, lambda: False)))
        if not isinstance(reply, RoundReply):
            raise MessageError(f"{name} answered a round with a {reply.KIND}")
        return reply.update


class Attacker:
    """A dishonest merchant; implements trainer_link.Trainer."""

    def __init__(
        self, honest: Trainer, attack: Attack, agreement: Agreement, merchant: str, circle: Circle | None = None
    ) -> None:
        self._honest = honest
        self._attack = attack
        self._limits = agreement.cohort
        self._circle = circle
        self._memory = Memory()
        self._rng = attack_generator(agreement, merchant, "replies")
        self._num_rows: int | None = None

    def answer(self, order: bytes) -> bytes:
        """The reply that the coordinator gets."""
        answer = self._honest.answer(order)
        asked, reply = decode(order), decode(answer)
        match reply:
            case StatisticsReply():
                told = self._attack.statistics(reply, self._limits.max_examples)
                self._num_rows = told.num_train_rows
                return encode(told)
            case RoundReply() if isinstance(asked, RoundOrder):
                self._memory.weights = [*self._memory.weights[-1:], asked.weights]
                self._memory.updates.append(reply.update)
                claimed = reply.model_copy(update={"num_examples": self._num_rows or reply.num_examples})
                sent = self._sent(asked, reply.update)
                return encode(bent(self._attack, asked, claimed, sent, self._limits.max_update_norm))
            case EvaluateReply() if isinstance(asked, EvaluateOrder) and asked.split == "validation":
                false = self._attack.validation(reply.histogram, None)
                return encode(reply.model_copy(update={"histogram": false}))
        return answer

    def _sent(self, order: RoundOrder, update: Vector) -> Vector:
        if self._circle is not None:
            return self._circle.update(order)
        return self._attack.update(update, self._memory, self._rng)


def attacked_trainers(
    agreement: Agreement, workers: Mapping[str, Worker], attackers: tuple[str, ...], attack: Attack
) -> dict[str, Trainer]:
    """Everyone's trainer in the order of `workers`; those of the attackers, whose workers have the rows that they train
    on, behind the attack.
    """
    circle = Circle(attack, {name: workers[name] for name in attackers}) if isinstance(attack, Colluders) else None
    honest = in_process(agreement, workers)
    return {
        name: Attacker(trainer, attack, agreement, name, circle) if name in attackers else trainer
        for name, trainer in honest.items()
    }


def attack_generator(agreement: Agreement, merchant: str, purpose: str) -> np.random.Generator:
    """Where an attacker's own random choices come from."""
    return generator(agreement.seed, "attack", merchant, purpose)
