"""A merchant that believes nobody takes no part where noise is shared, and may say so once for all agreements."""

from __future__ import annotations

from datetime import time

import numpy as np
import pytest

from hansa_client.merchant_policy import MerchantPolicy, parse_policy
from hansa_common.agreement import validate_agreement
from hansa_common.errors import PolicyError
from hansa_common.messages import RoundOrder
from hansa_common.secure_messages import Masking

ROSTER = ["a", "b", "c", "d"]
NOTHING = np.zeros(0, np.float32)
ROUND = RoundOrder(
    run_id="run", sequence=1, recipient="a", fingerprint="0" * 64, deadline_seconds=9.0, round=1, plan=0,
    cohort=tuple(ROSTER), preprocessing="", weights=NOTHING, control=NOTHING, included="",
    masking=Masking(sum=1, next_sum=0), shares=np.zeros(0, np.uint8),
)  # fmt: skip


def agreement_with(noise: str):
    values = {
        "task": "fraud",
        "label": {"column": "fraud"},
        "features": [{"kind": "numeric", "name": "amount", "low": 0, "high": 1}],
        "training": {"algorithm": "fedavg", "rounds": 3, "plan": {"optimizer": "sgd", "local_steps": 1}},
        "cohort": {"min_merchants": 3, "max_update_norm": 1, "max_examples": 1000},
        "secure_aggregation": {"protocol": "double-masking", "colluders": 1},
        "privacy": {"dp": {"epsilon": 8, "noise_multiplier": 4.0, "sampling_rate": 1.0, "noise": noise}},
        "roster": ROSTER,
    }
    return validate_agreement(values, "the test")


def test_round_whose_noise_is_shared_is_refused_and_told_before_the_first_order() -> None:
    policy = parse_policy(b"own_noise_required = true", "it")
    with pytest.raises(PolicyError, match=r"noise is shared, merchant\.toml has own_noise_required = true"):
        policy.verify(ROUND, agreement_with("shared"), time(12))
    (told,) = policy.conflicts(agreement_with("shared"))
    assert "own_noise_required = true" in told


@pytest.mark.parametrize(("is_required", "noise"), [(True, "own"), (False, "shared"), (False, "own")])
def test_everything_else_passes(is_required: bool, noise: str) -> None:
    policy = MerchantPolicy(own_noise_required=is_required)
    policy.verify(ROUND, agreement_with(noise), time(12))
    assert policy.conflicts(agreement_with(noise)) == []
