"""The compiled programs of one process: what is compiled for one merchant or plan serves all that step alike.

Nothing is compiled before its first use. What a program does is training_loop.py's; which rows it is given, its
caller's.
"""

from __future__ import annotations

from functools import cached_property

from hansa_client.data import MerchantTable
from hansa_client.gradient_sums import GradientSums
from hansa_client.private_training import PrivateTraining
from hansa_client.training_loop import LocalTraining, describe_device
from hansa_common.agreement import Agreement
from hansa_common.agreement_sections import Plan
from hansa_common.model import ModelSpec


class Programs:
    """The compiled training of one process, shared by every merchant in it: one program for all plans that step alike,
    and one that scores for all.
    """

    def __init__(self, agreement: Agreement, capacity_rows: int) -> None:
        """Compile nothing yet; `capacity_rows` is the most rows that any merchant of this process has."""
        self.spec = ModelSpec.from_agreement(agreement)
        self._agreement = agreement
        self._capacity_rows = capacity_rows
        self._trainings: dict[Plan, LocalTraining] = {}
        self._private_trainings: dict[Plan, PrivateTraining] = {}
        # One at most, in what programs that share theirs have in common.
        self._gradient_sums: list[GradientSums] = []

    @classmethod
    def for_tables(cls, agreement: Agreement, *tables: MerchantTable) -> Programs:
        """Programs with room for the largest of these tables."""
        return cls(agreement, max(len(table.labels) for table in tables))

    def sharing(self, agreement: Agreement) -> Programs:
        """Programs of another agreement on the same model: what is compiled for one serves the other.

        Raises:
            ValueError: the agreement has another model.
        """
        if agreement.model != self._agreement.model or ModelSpec.from_agreement(agreement) != self.spec:
            raise ValueError("programs are shared between agreements on the same model only")
        other = Programs(agreement, self._capacity_rows)
        other._trainings = self._trainings
        other._private_trainings = self._private_trainings
        other._gradient_sums = self._gradient_sums
        return other

    def training(self, plan: int) -> LocalTraining:
        """The program of a plan, built at its first use."""
        stepping = _stepping(self._agreement.training.plans[plan])
        if stepping not in self._trainings:
            self._trainings[stepping] = LocalTraining(
                self.spec, self._agreement.model, stepping, capacity_rows=self._capacity_rows
            )
        return self._trainings[stepping]

    def private_training(self, plan: int) -> PrivateTraining:
        """The program of a plan's private steps, built at its first use."""
        # One for all learning rates, which each round tells it.
        stepping = _stepping(self._agreement.training.plans[plan]).model_copy(update={"learning_rate": 1.0})
        if stepping not in self._private_trainings:
            self._private_trainings[stepping] = PrivateTraining(
                self.spec, self._agreement.model, stepping, capacity_rows=self._capacity_rows
            )
        return self._private_trainings[stepping]

    def gradient_sums(self) -> GradientSums:
        """The program of clipped gradients alone, the same for all plans; built at its first use."""
        if not self._gradient_sums:
            self._gradient_sums.append(GradientSums(self.spec, self._agreement.model))
        return self._gradient_sums[0]

    def scoring(self) -> LocalTraining:
        """Any program: all plans score alike."""
        return next(iter(self._trainings.values()), None) or self.training(0)

    @cached_property
    def device(self) -> tuple[str, str]:
        """The backend and the device that these programs run on."""
        return describe_device()


def _stepping(plan: Plan) -> Plan:
    """What of a plan a step depends on; the rest is as it is by default."""
    fields = {"optimizer", "learning_rate", "batch_size"}
    if plan.optimizer == "momentum":
        fields |= {"momentum"}
    if plan.algorithm == "fedprox":
        fields |= {"algorithm", "proximal_mu"}
    return Plan.model_validate({field: getattr(plan, field) for field in fields})
