"""What in a table a person should decide about before anyone trains on it.

Each finding names its column, says what was seen, and whether the drafted agreement leaves the column out.
Suspicions, not verdicts: a column left out is still in the draft, as a comment.

| code           | seen                                                                                | left out |
|----------------|-------------------------------------------------------------------------------------|----------|
| name           | a name with control characters, empty or too long                                   | yes      |
| empty          | no value at all                                                                     | yes      |
| constant       | one value in every row                                                              | yes      |
| duplicate      | the same values as an earlier column, or one to one with it (at most 32 different)  | yes      |
| identifier     | nearly every row another text or whole number, or a name that says so               | yes      |
| leakage        | alone it ranks positives above negatives with ROC-AUC of .98 or more                | no       |
| few-values     | a number with at most 20 different values                                           | no       |
| codes          | whole numbers taken for codes, not counts                                           | no       |
| mostly-missing | at most one row in twenty has a value                                               | no       |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.profiles import MAX_CODES, Profile, words_of

Counts = NDArray[np.int64]

LEAKAGE_ROC_AUC: Final = 0.98
# With fewer of a class, a column of pure chance too easily ranks it perfectly.
MIN_ROWS_OF_A_CLASS: Final = 10
MAX_ONE_TO_ONE: Final = 32
MIN_IDENTIFIED_ROWS: Final = 100
NEARLY_UNIQUE_TEXT: Final = 0.9
NEARLY_UNIQUE_NUMBER: Final = 0.99
MOSTLY_MISSING: Final = 0.95
_NUM_BINS: Final = 64
_MAX_NAME_LENGTH: Final = 120
_MIN_NAMED_IDENTIFIERS: Final = 33
_IDENTIFIER_WORDS: Final = frozenset({"id", "uuid", "guid", "email", "iban", "phone"})


@dataclass(frozen=True)
class Finding:
    """One thing to decide about. column: None where it is about the whole table."""

    column: str | None
    code: str
    message: str
    leaves_out: bool = False


def inspect_columns(profiles: Sequence[Profile], labels: NDArray[np.uint8]) -> dict[str, list[Finding]]:
    """Findings by column name; labels: (rows,) 0 or 1."""
    findings: dict[str, list[Finding]] = {profile.name: [] for profile in profiles}
    seen: dict[bytes, str] = {}
    for profile in profiles:
        reason = _reason_to_leave_out(profile) or _duplicate(profile, seen)
        findings[profile.name] = [reason] if reason else list(_doubts(profile, labels))
    return findings


def leakage(profile: Profile, labels: NDArray[np.uint8]) -> float | None:
    """How well the column alone ranks the rows: the ROC-AUC, from .5 to 1; None where too few rows can tell.

    A number is ranked as it is, upwards or downwards. Any column is also ranked by the rate of positives of its
    values (numbers in 64 bins; missing is a value): the rates are taken from half of the rows and judged on the
    other half, and the other way round, so that rare values prove nothing.
    """
    found = [_rank_auc(profile, labels)] if profile.kind in {"numeric", "iso", "seconds"} else []
    found.append(_cross_rate_auc(_groups(profile), labels))
    told = [auc for auc in found if auc is not None]
    return max(told) if told else None


def roc_auc(scores: NDArray[np.float64], positives: Counts, negatives: Counts) -> float:
    """ROC-AUC where group g of rows has scores[g], positives[g] and negatives[g]; ties count half.

    >>> roc_auc(np.array([0.1, 0.9]), np.array([0, 2]), np.array([3, 0]))
    1.0
    """
    _, level = np.unique(scores, return_inverse=True)
    positives_at, negatives_at = np.bincount(level, positives), np.bincount(level, negatives)
    negatives_below = np.cumsum(negatives_at) - negatives_at
    ranked_right = np.sum(positives_at * (negatives_below + negatives_at / 2))
    return float(ranked_right / (positives_at.sum() * negatives_at.sum()))


def _reason_to_leave_out(profile: Profile) -> Finding | None:
    def left_out(code: str, message: str) -> Finding:
        return Finding(profile.name, code, message, leaves_out=True)

    if not _is_fit_name(profile.name):
        return left_out("name", f"the name must have 1 to {_MAX_NAME_LENGTH} characters and no line breaks or tabs")
    if profile.num_present == 0:
        return left_out("empty", "no row has a value")
    if profile.num_distinct == 1 and profile.num_missing == 0:
        return left_out("constant", f"every row has {_shown(profile.distinct[0])}")
    if _is_nearly_unique(profile):
        return left_out(
            "identifier", f"{profile.num_distinct} different values in {profile.num_present} rows: it may name the row"
        )
    if profile.num_distinct >= _MIN_NAMED_IDENTIFIERS and words_of(profile.name) & _IDENTIFIER_WORDS:
        return left_out(
            "identifier", f"{profile.num_distinct} different values, and the name says that they name someone"
        )
    return None


def _is_fit_name(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME_LENGTH and min(name) > "\x1f"


def _is_nearly_unique(profile: Profile) -> bool:
    if profile.num_present < MIN_IDENTIFIED_ROWS:
        return False
    share = profile.num_distinct / profile.num_present
    if profile.kind == "categorical":
        return share >= NEARLY_UNIQUE_TEXT
    return profile.kind == "numeric" and profile.is_whole and share >= NEARLY_UNIQUE_NUMBER


def _duplicate(profile: Profile, seen: dict[bytes, str]) -> Finding | None:
    """A finding if an earlier column says the same; otherwise the column is noted in `seen`, by digest."""
    is_text = profile.kind == "categorical"
    distinct = "\0".join(profile.distinct).encode() if is_text else profile.distinct.tobytes()
    codes = profile.codes.tobytes()
    relations = {_digest(codes, distinct): "has the same values as"}
    if profile.num_distinct <= MAX_ONE_TO_ONE:
        # Codes go by first appearance, so a renaming of the values leaves them equal.
        relations[_digest(codes)] = "is one to one with"
    for digest, relation in relations.items():
        if digest in seen:
            return Finding(profile.name, "duplicate", f"it {relation} {seen[digest]!r} in every row", leaves_out=True)
    seen.update(dict.fromkeys(relations, profile.name))
    return None


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _doubts(profile: Profile, labels: NDArray[np.uint8]) -> Iterator[Finding]:
    auc = leakage(profile, labels)
    if auc is not None and auc >= LEAKAGE_ROC_AUC:
        yield Finding(
            profile.name,
            "leakage",
            f"alone it predicts the label with ROC-AUC {auc:.3f}; is it known before the outcome is?",
        )
    if profile.num_missing >= MOSTLY_MISSING * len(profile.codes):
        yield Finding(
            profile.name, "mostly-missing", f"only {profile.num_present} of {len(profile.codes)} rows have it"
        )
    if profile.kind == "numeric" and profile.num_distinct <= MAX_CODES:
        yield Finding(
            profile.name,
            "few-values",
            f"a number with only {profile.num_distinct} different values; if they are codes, make it categorical",
        )
    if profile.holds_codes:
        yield Finding(
            profile.name,
            "codes",
            f"{profile.num_distinct} different whole numbers from 1, taken for codes; if they count, make it numeric",
        )


def _rank_auc(profile: Profile, labels: NDArray[np.uint8]) -> float | None:
    is_present = profile.codes >= 0
    negatives, positives = _class_counts(profile.codes[is_present], labels[is_present], profile.num_distinct)
    if min(positives.sum(), negatives.sum()) < MIN_ROWS_OF_A_CLASS:
        return None
    auc = roc_auc(profile.distinct.astype(np.float64), positives, negatives)
    return max(auc, 1 - auc)


def _cross_rate_auc(groups: NDArray[np.int64], labels: NDArray[np.uint8]) -> float | None:
    """groups: (rows,) which value or bin a row has, from 0."""
    in_half = np.zeros(len(labels), np.bool_)
    for label in (0, 1):
        in_half[np.flatnonzero(labels == label)[::2]] = True
    num_groups = int(groups.max()) + 1
    halves = [_class_counts(groups[half], labels[half], num_groups) for half in (in_half, ~in_half)]
    if min(int(count.sum()) for half in halves for count in half) < MIN_ROWS_OF_A_CLASS // 2:
        return None
    prior = float(labels.mean())
    aucs = []
    for (known_negatives, known_positives), (negatives, positives) in (halves, halves[::-1]):
        rates = (known_positives + prior) / (known_negatives + known_positives + 1)
        aucs.append(roc_auc(rates, positives, negatives))
    return float(np.mean(aucs))


def _groups(profile: Profile) -> NDArray[np.int64]:
    """(rows,) the value or, of a number with many, the bin; missing is group 0."""
    if profile.kind in {"categorical", "boolean"} or profile.num_distinct <= _NUM_BINS:
        return profile.codes + 1
    inner_edges = np.unique(np.nanquantile(profile.array, np.arange(1, _NUM_BINS) / _NUM_BINS))
    bins = np.searchsorted(inner_edges, profile.array, side="right") + 1
    return np.where(profile.codes < 0, 0, bins)


def _class_counts(groups: NDArray[Any], labels: NDArray[np.uint8], num_groups: int) -> tuple[Counts, Counts]:
    """Negatives and positives of each group."""
    return (
        np.bincount(groups[labels == 0], minlength=num_groups),
        np.bincount(groups[labels == 1], minlength=num_groups),
    )


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"{value:.15g}"
