"""What a bundle is, and in what two differ, as plain values and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from hansa_common.bundle import Bundle
from hansa_common.vectors import num_params

_FIGURES: Final = ("roc_auc", "pr_auc", "recall_at_1_fpr", "recall_at_5_fpr", "brier")
_VERSIONS: Final = ("validation", "federated", "compressed")

_MAX_SHOWN_CHARS: Final = 100

Difference = dict[str, Any]


def facts(bundle: Bundle, *, is_trusted: bool) -> dict[str, Any]:
    """What `hansa bundle show` says, as plain values."""
    manifest = bundle.manifest
    return {
        "bundle": bundle.bundle_id,
        "signer": bundle.signer,
        "is_trusted": is_trusted,
        **manifest.model_dump(mode="json", exclude={"files"}),
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "scores_with": bundle.network_name,
        "features": {feature.name: feature.kind for feature in bundle.preprocessing.features},
        "network": {**bundle.spec.model_dump(mode="json"), "num_params": num_params(bundle.spec.shapes)},
        "metrics": _figures(bundle.metrics),
    }


def shown(known: Mapping[str, Any]) -> str:
    """The same as lines."""
    lines = {
        "bundle": known["bundle"],
        "signed by": known["signer"] + ("" if known["is_trusted"] else " (whom to trust was not asked; see --key)"),
        "agreement": known["agreement_fingerprint"],
        "run": f"{known['run_id']}, by Hansa {known['hansa_version']}",
        "made with": _listed(known["made_with"]),
        "network": f"{known['network']['num_params']:,} parameters, hidden layers {known['network']['hidden']}",
        "features": f"{len(known['features'])}: {', '.join(known['features'])}",
        "hash key": known["hash_key_id"] or "none is needed",
        "zeros": _listed({name: f"{100 * share:.1f} %" for name, share in known["sparsity"].items()}),
    }
    lines |= {name: f"{size:,} bytes" for name, size in known["files"].items()}
    lines["scores with"] = known["scores_with"]
    lines |= {
        name: _listed({key: f"{v:.4f}" for key, v in values.items()}) for name, values in known["metrics"].items()
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def differences(first: Bundle, second: Bundle) -> list[Difference]:
    """In what two bundles differ: what it is of, and what stands in each; empty where they are the same."""
    return [{"what": what, "first": one, "second": other} for what, one, other in _pairs(first, second) if one != other]


def told(found: list[Difference]) -> list[str]:
    """The same as lines."""
    return [f"{entry['what']}: {_plain(entry['first'])} -> {_plain(entry['second'])}" for entry in found]


def _pairs(first: Bundle, second: Bundle) -> Iterator[tuple[str, Any, Any]]:
    yield "signer", first.signer, second.signer
    mine, others = (bundle.manifest.model_dump(mode="json") for bundle in (first, second))
    for name in ("agreement_fingerprint", "run_id", "hansa_version", "hash_key_id"):
        yield name, mine[name], others[name]
    for name in ("made_with", "sparsity"):
        yield from _entries(name, mine[name], others[name])
    sizes = [
        {name: f"{entry['sha256'][:12]}, {entry['size']:,} bytes" for name, entry in m["files"].items()}
        for m in (mine, others)
    ]
    yield from _entries("file", *sizes)
    yield from _entries("feature", _features(first), _features(second))
    yield from _entries("preprocessing", _fitted(first), _fitted(second))
    yield from _entries("network", first.spec.model_dump(mode="json"), second.spec.model_dump(mode="json"))
    if first.spec.shapes == second.spec.shapes:
        yield "largest change of a weight", 0.0, float(np.abs(first.weights - second.weights).max())
    yield from _entries("figure", _flat(_figures(first.metrics)), _flat(_figures(second.metrics)))


def _entries(kind: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(first.keys() | second.keys()):
        yield f"{kind} {name}", first.get(name), second.get(name)


def _features(bundle: Bundle) -> dict[str, Any]:
    return {
        feature.name: feature.model_dump(mode="json", exclude={"name"}) for feature in bundle.preprocessing.features
    }


def _fitted(bundle: Bundle) -> dict[str, Any]:
    pairs = zip(bundle.preprocessing.features, bundle.preprocessing.fitted, strict=True)
    return {feature.name: fitted.model_dump(mode="json") for feature, fitted in pairs}


def _figures(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The figures that a person asks for first, of those that are there."""
    found: dict[str, dict[str, float]] = {}
    for version in _VERSIONS:
        values = metrics.get(version)
        if isinstance(values, Mapping):
            figures = {name: values[name] for name in _FIGURES if isinstance(values.get(name), int | float)}
            found |= {version: figures} if figures else {}
    return found


def _flat(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{version}.{name}": value for version, values in figures.items() for name, value in values.items()}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "-"


def _plain(value: Any) -> str:
    if value is None:
        return "not there"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."
