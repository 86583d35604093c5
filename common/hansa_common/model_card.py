"""The model card of a bundle, in Markdown: what the model is for, what it learned from, how good it is, what it is not,
and what it may tell of the rows behind it. Equal models have equal cards; nothing in one speaks of a single merchant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hansa_common.agreement import Agreement
from hansa_common.model import ModelSpec
from hansa_common.schema import BooleanFeature, CategoricalFeature, Feature, NumericFeature
from hansa_common.vectors import num_params

_TASKS: Final = {
    "fraud": "ranks payments by how likely they are fraud",
    "purchase": "ranks visitors by how likely they are to buy",
}
_FIGURES: Final = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "recall_at_1_fpr": "recall at 1 % false positives",
    "recall_at_5_fpr": "recall at 5 % false positives",
    "brier": "Brier score",
}
_VERSIONS: Final = {"federated": "as trained", "compressed": "int8 file"}
_LIMITS: Final = """\
- The figures are those of all merchants together; on one merchant's rows they can be lower or higher.
- The model knows the time that it learned from. Fraud and shoppers change: measure it on new rows of your own before
  you rely on it, and again from time to time.
- There is no threshold in the bundle. Where a score becomes a decision is for each merchant to choose, on its own rows.
- A score says what is likely, not why. A decision about a person needs more than a score."""
_HASHED: Final = """
- Hashed categories mean something only under the key that the merchants trained with."""
_PRIVACY: Final = """\
- The bundle holds no row. It holds what was fitted to sums over all merchants (means, deviations, shares, and which
  agreed categories somebody has; counts below {min_count} count as none), the weights, and the figures above.
- Differential privacy was not applied: nothing bounds what the weights may tell of a single row. Give the bundle to
  nobody to whom you would not give a model that was trained on your rows.
- Which merchant contributed what does not stand in it."""
_ESCAPED: Final = "\\`*_[]<>|#"


def model_card(
    agreement: Agreement,
    spec: ModelSpec,
    metrics: Mapping[str, Any],
    sparsity: Mapping[str, float],
    file_sizes: Mapping[str, int],
) -> str:
    """The card. metrics: the bundle's; sparsity: shares of zeros by name; file_sizes: bytes of the TFLite files."""
    sections = {
        "What it is": _what_it_is(agreement, spec, sparsity, file_sizes),
        "Data": _data(agreement),
        "Metric": _metric(metrics),
        "Limits": _limits(agreement),
        "Privacy": _PRIVACY.format(min_count=agreement.privacy.min_count),
    }
    title = f"# Model card: {_plain(agreement.name)}\n"
    return "\n".join([title, *(f"## {heading}\n\n{body}\n" for heading, body in sections.items())])


def _what_it_is(
    agreement: Agreement, spec: ModelSpec, sparsity: Mapping[str, float], file_sizes: Mapping[str, int]
) -> str:
    hidden = " - ".join(str(num_units) for num_units in spec.hidden)
    network = f"hidden layers of {hidden} units ({spec.activation})" if hidden else "no hidden layer"
    label = agreement.label
    lines = [
        f"It {_TASKS[agreement.task]}.",
        f"A score is the estimated probability that `{_code(label.column)}` is `{_code(label.positive)}`.",
        "Several merchants trained it together, and no row left the merchant whose it is.",
        f"Fingerprint of their agreement: `{agreement.fingerprint}`.",
        "",
        f"- network: {network}, {num_params(spec.shapes):,} parameters, {len(spec.embeddings)} embedding tables",
    ]
    lines += [f"- `{_code(name)}`: {size:,} bytes" for name, size in file_sizes.items()]
    lines += [f"- zeros in {_plain(name)}: {100 * share:.1f} %" for name, share in sparsity.items()]
    return "\n".join(lines)


def _data(agreement: Agreement) -> str:
    split = "by time: test rows come last" if agreement.data.split == "time" else "stratified by label"
    roster = f"{len(agreement.roster)} merchants are in the agreement's roster" if agreement.roster else "any merchant"
    lines = [
        f"Tables of the merchants who took part ({roster}). Each divided its own rows {split}. Columns that are read:",
        "",
        "| column | kind | values |",
        "|---|---|---|",
    ]
    lines += [f"| {_plain(feature.name)} | {feature.kind} | {_domain(feature)} |" for feature in agreement.features]
    return "\n".join(lines)


def _domain(feature: Feature) -> str:
    match feature:
        case NumericFeature():
            domain = f"{feature.low:g} to {feature.high:g}; outside is moved to the nearer end"
        case CategoricalFeature():
            entries = f"{len(feature.vocabulary)} agreed entries; others count as unknown"
            domain = entries if feature.vocabulary else f"any text, hashed into {feature.hash_buckets} buckets"
        case BooleanFeature():
            domain = "true or false"
        case _:
            domain = "a moment; hour of day and day of week are used"
    return domain + ("; never missing" if feature.missing == "refuse" else "; may be missing")


def _metric(metrics: Mapping[str, Any]) -> str:
    versions = {name: metrics[name] for name in _VERSIONS if isinstance(metrics.get(name), Mapping)}
    rows = [
        f"| {told} | " + " | ".join(_figure(figures.get(key)) for figures in versions.values()) + " |"
        for key, told in _FIGURES.items()
        if any(figures.get(key) is not None for figures in versions.values())
    ]
    if not rows:
        return "No figures on test rows: the merchants' histograms were too small to be released."
    header = f"| on all merchants' test rows | {' | '.join(_VERSIONS[name] for name in versions)} |"
    return "\n".join([header, "|---" * (1 + len(versions)) + "|", *rows])


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


def _limits(agreement: Agreement) -> str:
    return _LIMITS + ("" if agreement.privacy.hash_key_id is None else _HASHED)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = "".join(f"\\{letter}" if letter in _ESCAPED else letter for letter in text)
    return " ".join(escaped.split())


def _code(text: str) -> str:
    """Text for between backticks."""
    return " ".join(text.replace("`", "'").split())
