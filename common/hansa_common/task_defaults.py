"""What `task` sets where the agreement is silent. An explicit value always wins, and the canonical JSON
holds the filled-in values, so a later change of these defaults never changes an agreement already made.
"""

from __future__ import annotations

from typing import Any

# Rare positives: larger batches, so that a batch holds some, and L2, without which plain federated
# averaging loses several hundredths of ROC-AUC on card fraud.
_FRAUD = {
    "model": {"hidden": [64, 32], "l2": 1e-4, "output_bias": -4.0},
    "training": {"plan": {"optimizer": "adam", "learning_rate": 1e-3, "batch_size": 256}},
    "privacy": {"min_positives": 1},
}
_PURCHASE = {
    "model": {"hidden": [128, 64], "dropout": 0.3},
    "training": {
        "algorithm": "scaffold",
        "plan": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 32, "local_epochs": 5},
    },
}
_DEFAULTS: dict[str, dict[str, Any]] = {"fraud": _FRAUD, "purchase": _PURCHASE}


def with_task_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Fill what is absent from the task's defaults; an unknown task is left for validation to refuse."""
    return _merged(_of_task(values), values)


def _of_task(values: dict[str, Any]) -> dict[str, Any]:
    defaults = _DEFAULTS.get(str(values.get("task")), {})
    privacy = values.get("privacy")
    if isinstance(privacy, dict) and privacy.get("dp") is not None:
        # Dropout has no accounting.
        model = {key: value for key, value in defaults.get("model", {}).items() if key != "dropout"}
        return {**defaults, "model": model}
    return defaults


def _merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, default in defaults.items():
        if key == "local_epochs" and merged.get("local_steps") is not None:
            continue  # How long a round trains is said, in the other unit.
        if key not in merged:
            merged[key] = default
        elif isinstance(default, dict) and isinstance(merged[key], dict):
            merged[key] = _merged(default, merged[key])
    return merged
