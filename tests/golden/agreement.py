"""Writes agreement.json, the canonical JSON of agreement.toml, and prints its SHA-256.

Each value is written out here by hand, so that nothing of hansa_common decides what the golden bytes are:

    python tests/golden/agreement.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MEANING = {
    "name": "Geschäfte & Co",
    "hansa_common": "0.1.0",
    "task": "fraud",
    "seed": 1000003,
    "label": {"column": "is_fraud", "positive": "yes"},
    "features": [
        {
            "kind": "numeric",
            "name": "amount",
            "low": 0.0,
            "high": 25000.0,
            "scaling": "log",
            "missing": "flag",
            "bins": 256,
        },
        {
            "kind": "categorical",
            "name": "country",
            "vocabulary": ["DE", "ÅL", 'a "quoted" \\ one'],
            "hash_buckets": 0,
            "encoding": "embedding",
            "embedding_dim": 8,
            "missing": "flag",
        },
        {
            "kind": "categorical",
            "name": "card",
            "vocabulary": [],
            "hash_buckets": 1024,
            "encoding": "one_hot",
            "embedding_dim": 8,
            "missing": "refuse",
        },
        {"kind": "boolean", "name": "gift", "missing": "flag"},
        {"kind": "timestamp", "name": "paid_at", "unit": "seconds", "missing": "flag"},
    ],
    "data": {
        "duplicates": "keep",
        "split": "time",
        "test_share": 0.2,
        "validation_share": 0.1,
        "time_column": "paid_at",
        "test_from": 1710000000.5,
        "validation_from": 1700000000.0,
    },
    "model": {
        "hidden": [],
        "activation": "relu",
        "dropout": 0.0,
        "l1": 1e-06,
        "l2": 0.0001,
        "layer_norm": False,
        "loss": "binary_crossentropy",
        "focal_gamma": 2.0,
        "positive_weight": 1.0,
        "output_bias": -4.0,
        "precision": "float32",
    },
    "training": {
        "algorithm": "fedprox",
        "rounds": 12,
        "patience": 10,
        "trial_rounds": 4,
        "plan": {
            "algorithm": "fedprox",
            "optimizer": "adam",
            "learning_rate": 0.001,
            "momentum": 0.9,
            "local_epochs": 2,
            "local_steps": None,
            "batch_size": 256,
            "proximal_mu": 0.01,
            "server_learning_rate": 1.0,
            "server_momentum": 0.9,
            "server_beta2": 0.99,
            "server_tau": 0.001,
        },
        "candidates": [],
    },
    "cohort": {
        "min_merchants": 2,
        "size": 3,
        "wait_seconds": 300.0,
        "deadline_seconds": 600.0,
        "max_update_norm": 10000.0,
        "max_examples": 1073741824,
        "rewound_ledger": "tell",
    },
    "privacy": {
        "min_count": 5,
        "min_positives": 1,
        "share_metrics": True,
        "hash_key_id": "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        "dp": None,
    },
    "robustness": {"rule": "mean", "num_dishonest": 0, "max_norm": None, "groups": None},
    "secure_aggregation": {"protocol": "none", "colluders": 0, "threshold": None, "update_bits": None},
    "compression": {
        "format": "none",
        "range_quantile": 0.9999,
        "max_pr_auc_loss": 0.003,
        "max_merchant_pr_auc_loss": 0.05,
        "sparsity": 0.0,
        "pruning_rounds": 4,
    },
    "audit": {"attack": "lira", "shadows": 32, "max_true_positive_rate": None},
    "roster": ["north", "south", "Amount >= 100 (west)"],
    "trust": {
        "coordinator": "c0" * 32,
        "merchants": {"north": "a1" * 32, "south": "a2" * 32, "Amount >= 100 (west)": "a3" * 32},
    },
}


def canonical_json() -> bytes:
    """Sorted keys, no spaces, UTF-8."""
    return json.dumps(MEANING, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


if __name__ == "__main__":
    Path(__file__).with_suffix(".json").write_bytes(canonical_json())
    print(hashlib.sha256(canonical_json()).hexdigest())
