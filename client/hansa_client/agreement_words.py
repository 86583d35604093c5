"""An agreement in plain words for the merchant who is to approve it, and what is new in it since the last one.

The words tell what is asked of the merchant and what leaves it; the file itself and docs/data.md say every key.
Whatever an agreement's author chose is written so that no terminal obeys it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hansa_common.agreement import Agreement
from hansa_common.agreement_sections import Plan
from hansa_common.plain_text import printable
from hansa_common.privacy_statement import statement
from hansa_common.robust_agreement import least_replies, robust_words
from hansa_common.secure_agreement import secure_words

MAX_SHOWN_CHARS: Final = 60
MAX_NAMES_CHARS: Final = 2000
_WHAT_LEAVES: Final = (
    "the coordinator gets, in the clear, your update of every round; your number of training rows; and counts of your "
    "columns and histograms of your scores"
)
_LEAVES_WITH_NOISE: Final = (
    "the coordinator gets, with noise, your update of every round and what your columns are scaled by; and your number "
    "of training rows as it is"
)
_LEAVES_MASKED: Final = (
    "the coordinator gets, masked and added up with others', your update of every round, your number of training rows, "
    "counts of your columns and histograms of your scores"
)
_LEAVES_MASKED_WITH_NOISE: Final = (
    "the coordinator gets, with noise, masked and added up with others', your update of every round and what your "
    "columns are scaled by; and, masked, your number of training rows"
)


def plain_words(agreement: Agreement) -> list[str]:
    """The agreement as sentences, one a line."""
    return [
        _task(agreement),
        _columns(agreement),
        _rounds(agreement),
        _cohort(agreement),
        *robust_words(agreement.robustness),
        *_what_leaves(agreement),
        *_compression(agreement),
        *_trust(agreement),
    ]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is not the same in two agreements' values, one line each, in order of place; nothing where they are equal.

    >>> differences({"roster": ["a", "b"], "seed": 1}, {"roster": ["a", "c"], "seed": 2})
    ["roster: 'c' is new", "roster: 'b' is gone", 'seed: 1 -> 2']
    """
    return list(_differences("", before, after))


def _differences(place: str, before: Any, after: Any) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            inner = f"{place}.{key}" if place else str(key)
            if key not in before:
                yield f"{_text_of_place(inner)}: new, {_shown(after[key])}"
            elif key not in after:
                yield f"{_text_of_place(inner)}: gone, was {_shown(before[key])}"
            else:
                yield from _differences(inner, before[key], after[key])
    elif _are_named(before) and _are_named(after):
        old, new = ({entry["name"]: entry for entry in entries} for entries in (before, after))
        yield from _members(place, list(old), list(new))
        for name in (name for name in new if name in old):
            yield from _differences(f"{place}.{name}", old[name], new[name])
    elif _are_texts(before) and _are_texts(after):
        yield from _members(place, before, after)
    else:
        yield f"{_text_of_place(place)}: {_shown(before)} -> {_shown(after)}"


def _members(place: str, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    old, new = set(before), set(after)
    yield from (f"{_text_of_place(place)}: {_text(name)} is new" for name in after if name not in old)
    yield from (f"{_text_of_place(place)}: {_text(name)} is gone" for name in before if name not in new)
    if old == new and list(before) != list(after):
        yield f"{_text_of_place(place)}: in another order"


def _are_named(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) and "name" in value for value in values)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _task(agreement: Agreement) -> str:
    column, positive = _text(agreement.label.column), _text(agreement.label.positive)
    return f"{_text(agreement.name)}: a {agreement.task} model of column {column}, positive where it says {positive}"


def _columns(agreement: Agreement) -> str:
    names = [feature.name for feature in agreement.features]
    hashed = "" if agreement.privacy.hash_key_id is None else "; categories are hashed with the merchants' own key"
    dp = agreement.privacy.dp
    entity = "" if dp is None or dp.entity_column is None else f"; and whose a row is: {_text(dp.entity_column)}"
    return f"reads of your table that column and {len(names)} more, nothing else: {_names(names)}{entity}{hashed}"


def _rounds(agreement: Agreement) -> str:
    plans = agreement.training.plans
    best = ", whichever does best on trial" if len(plans) > 1 else ""
    if agreement.privacy.dp is not None:
        number = "1 step" if plans[0].local_steps == 1 else f"{plans[0].local_steps} steps"
        steps = f"{plans[0].algorithm}, {number} of {plans[0].optimizer}"
        return f"trains in {agreement.training.rounds} rounds, each on training rows that coins choose: {steps}"
    how = "; or ".join(map(_plan, plans))
    return f"trains in up to {agreement.training.rounds} rounds, each on all your training rows: {how}{best}"


def _plan(plan: Plan) -> str:
    number, unit = (plan.local_epochs, "epoch") if plan.local_steps is None else (plan.local_steps, "step")
    work = f"1 {unit}" if number == 1 else f"{number} {unit}s"
    return f"{plan.algorithm}, {work} of {plan.optimizer} in batches of {plan.batch_size}"


def _cohort(agreement: Agreement) -> str:
    drawn = "" if agreement.cohort.size is None else f", of {agreement.cohort.size} drawn for it"
    roster = f"the roster's {len(agreement.roster)}: {_names(agreement.roster)}"
    who = f", of {roster}" if agreement.roster else "; anyone may take part"
    least = least_replies(agreement.robustness, agreement.cohort)
    rewound = "; whose privacy ledger goes back is left out" if agreement.cohort.rewound_ledger == "leave-out" else ""
    return f"a round counts with {least} merchants or more{drawn}{who}{rewound}"


def _what_leaves(agreement: Agreement) -> list[str]:
    if agreement.privacy.dp is not None:
        leaves = _LEAVES_MASKED_WITH_NOISE if agreement.secure_aggregation.is_on else _LEAVES_WITH_NOISE
        return [leaves, *secure_words(agreement), *statement(agreement)]
    if agreement.secure_aggregation.is_on:
        return [_LEAVES_MASKED, *secure_words(agreement), _floors(agreement)]
    return [_WHAT_LEAVES, _floors(agreement)]


def _floors(agreement: Agreement) -> str:
    privacy = agreement.privacy
    own = "your own figures are sent and reported" if privacy.share_metrics else "your own figures are not sent"
    return (
        f"it gets no count below {privacy.min_count} and no histogram of fewer than {privacy.min_positives} positives; "
        f"{own}"
    )


def _compression(agreement: Agreement) -> list[str]:
    compression = agreement.compression
    if compression.format == "none":
        return []
    pruned = ""
    if compression.sparsity:
        pruned = f"pruned to {compression.sparsity:.0%} zeros in two sets of {compression.pruning_rounds} more rounds, "
    quantized = f"{pruned}quantized by histograms of what flows through it on your rows"
    return [f"the model is then made small: {quantized}, judged on them, and delivered to you"]


def _trust(agreement: Agreement) -> list[str]:
    if agreement.trust is None:
        return ["nothing is signed: it is for one machine alone"]
    return [f"orders are obeyed that the coordinator's key has signed: {agreement.trust.coordinator}"]


def _names(names: Sequence[str]) -> str:
    return printable(", ".join(names), MAX_NAMES_CHARS)


def _text(text: str) -> str:
    return f"'{printable(text, MAX_SHOWN_CHARS)}'"


def _text_of_place(place: str) -> str:
    return printable(place, 2 * MAX_SHOWN_CHARS)


def _shown(value: Any) -> str:
    # Keys are compared letter by letter, so what is one is told whole.
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text, 2 * MAX_SHOWN_CHARS)
