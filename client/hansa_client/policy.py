"""What this merchant permits: orders under the one agreement it approved, addressed to it.

A check raises or returns None. What an order asks beyond its header (lengths, preprocessing, plan) is checked
where it is used, against the same agreement.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hansa_common.agreement import Agreement
from hansa_common.errors import AgreementMismatchError, PolicyError
from hansa_common.messages import CandidateOrder, DeliverOrder, EvaluateOrder, IntroduceOrder, RangesOrder, RoundOrder
from hansa_common.record_types import EVERYONE, Order
from hansa_common.secure_agreement import thresholds_of
from hansa_common.secure_messages import KeysOrder, MaskableOrder, UnmaskOrder


@dataclass(frozen=True)
class Policy:
    """One merchant's approval of one agreement."""

    agreement: Agreement
    merchant: str

    def verify(self, order: Order) -> None:
        """Permit the order, or say what it asks and what is allowed.

        another agreement's fingerprint -> AgreementMismatchError | to another merchant -> PolicyError
        to everyone -> only an introduction | a plan or a cohort outside the agreement -> PolicyError
        about a small model that the agreement does not ask for -> PolicyError
        about a masked sum where nothing is masked, in the clear where everything is -> PolicyError
        a masked round in which replies of too few counted, or of others than this one's own is said -> PolicyError
        another stage than training where the agreement does not prune, masks where nothing is pruned -> PolicyError

        Raises:
            AgreementMismatchError: the order's fingerprint is not that of the approved agreement.
            PolicyError: the order asks for something that the agreement does not hold.
        """
        if order.fingerprint != self._approved:
            raise AgreementMismatchError(
                f"the order is under agreement {order.fingerprint}, approved is {self._approved}; compare the two files"
            )
        everyone = order.recipient == EVERYONE and isinstance(order, IntroduceOrder)
        if order.recipient != self.merchant and not everyone:
            raise PolicyError(f"the order is for {order.recipient!r}, this merchant is {self.merchant!r}")
        about_small_model = isinstance(order, RangesOrder | CandidateOrder | DeliverOrder)
        if about_small_model and self.agreement.compression.format == "none":
            raise PolicyError(f"the order is a {order.KIND!r}, the agreement ships the model as trained")
        self._verify_masking(order)
        if isinstance(order, RoundOrder | EvaluateOrder):
            self._verify_stage(order)
        if isinstance(order, RoundOrder):
            self._verify_round(order)

    @cached_property
    def _approved(self) -> str:
        # Once: writing a large agreement anew for every order costs more than all other checks.
        return self.agreement.fingerprint

    def _verify_masking(self, order: Order) -> None:
        is_on = self.agreement.secure_aggregation.is_on
        about_sums = isinstance(order, KeysOrder | UnmaskOrder)
        is_masked = about_sums or (isinstance(order, MaskableOrder) and order.masking is not None)
        if is_masked and not is_on:
            raise PolicyError(f"the order is about a masked sum ({order.KIND!r}), the agreement masks nothing")
        if isinstance(order, MaskableOrder) and is_on and not is_masked:
            raise PolicyError(
                f"the order asks for {order.KIND!r} in the clear, the agreement's secure_aggregation.protocol is "
                f"{self.agreement.secure_aggregation.protocol!r}"
            )
        if is_on and isinstance(order, RoundOrder) and order.cohort != self.agreement.roster:
            raise PolicyError(
                f"the cohort {order.cohort} of a masked round is not the roster, whom every sum is asked of"
            )
        if isinstance(order, RoundOrder):
            self._verify_counted(order)

    def _verify_counted(self, order: RoundOrder) -> None:
        # Or a coordinator could tell all but one that their variates count, and have these cancel what they send.
        counted, roster = set(order.counted), self.agreement.roster
        if order.masking is None:
            if counted:
                raise PolicyError("the order says whose replies counted, which is for masked rounds")
            return
        if (order.included != "") != (roster.index(self.merchant) in counted):
            raise PolicyError("the order says otherwise to everyone than to this merchant whether its reply counted")
        least = thresholds_of(self.agreement).least
        if len(counted) != len(order.counted) or not counted <= set(range(len(roster))) or 0 < len(counted) < least:
            raise PolicyError(
                f"the order says that replies of {order.counted} counted; allowed are places of {least} or more of the "
                f"roster's {len(roster)} merchants, or none"
            )

    def _verify_stage(self, order: RoundOrder | EvaluateOrder) -> None:
        if order.stage != "train" and not self.agreement.compression.sparsity:
            raise PolicyError(f"the order is of stage {order.stage!r}, the agreement's compression.sparsity is 0")

    def _verify_round(self, order: RoundOrder) -> None:
        if order.stage != "prune" and len(order.masks) > 0:
            raise PolicyError(f"the order brings masks in stage {order.stage!r}, only stage 'prune' has them")
        num_plans = len(self.agreement.training.plans)
        if order.plan >= num_plans:
            raise PolicyError(f"the order asks for plan {order.plan}, the agreement has {num_plans}")
        if self.merchant not in order.cohort or len(set(order.cohort)) != len(order.cohort):
            raise PolicyError(f"the cohort {order.cohort} must name {self.merchant!r}, and everyone once")
        strangers = set(order.cohort) - set(self.agreement.roster)
        if self.agreement.roster and strangers:
            raise PolicyError(f"the cohort names {sorted(strangers)}, who are not in the agreement's roster")
        # An average over fewer than agreed would say more about this merchant than it agreed to.
        if len(order.cohort) < self.agreement.cohort.min_merchants:
            raise PolicyError(
                f"the cohort has {len(order.cohort)} merchants, "
                f"the agreement asks for at least {self.agreement.cohort.min_merchants}"
            )
