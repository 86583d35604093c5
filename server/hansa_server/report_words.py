"""How the report writes values: numbers, differences, intervals, counts, keys and rounds, each in one way.

What is absent, not a number or not finite is written as a dash; nothing here raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeGuard

DASH: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
MAX_LISTED: Final = 6
_SMALL_SHARE: Final = 0.001

_REASONS: Final = {
    "agreement-mismatch": "has approved another agreement",
    "busy": "was busy with another order",
    "data-invalid": "could not read its table as agreed",
    "deadline": "did not answer in time",
    "failed": "failed",
    "interrupted": "was asked when the coordinator broke off",
    "joining": "came back, and took part again from the next masked sum on",
    "message-invalid": "sent something that is no valid reply",
    "not-permitted": "does not permit what was asked",
}


def part(values: Any, *path: str) -> Mapping[str, Any]:
    """The mapping at a path, empty where there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def number(values: Any, *path: str) -> float | None:
    """The finite number at a path, or None.

    >>> number({"a": {"b": 1}}, "a", "b"), number({"a": None}, "a", "b")
    (1.0, None)
    """
    value = part(values, *path[:-1]).get(path[-1])
    return float(value) if is_number(value) else None


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def area(value: float | None) -> str:
    """A figure of about 0 to 1, to three places."""
    return DASH if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference, to three places, always with its sign.

    >>> signed(0.0421), signed(-0.0001)
    ('+0.042', '0.000')
    """
    if value is None:
        return DASH
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0.0 else text.replace("-", MINUS)


def interval(values: Any) -> str:
    """A difference with its 95 % interval."""
    estimate, low, high = (number(values, key) for key in ("estimate", "low", "high"))
    if estimate is None or low is None or high is None:
        return signed(estimate)
    return f"{signed(estimate)} ({signed(low)} to {signed(high)})"


def count(value: float | None) -> str:
    """A whole number with thousands set apart."""
    return DASH if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share in per cent, to three figures.

    >>> print(percent(0.0013158), percent(1.0))
    0.132\N{NO-BREAK SPACE}% 100\N{NO-BREAK SPACE}%
    """
    return DASH if value is None else f"{100 * value:.3g}\N{NO-BREAK SPACE}%"


def counted(value: float, total: float | None) -> str:
    """A count, and which share of a total it is.

    >>> print(counted(1029, 7000), counted(2, 7000), sep=", ")
    1,029 (14.7\N{NO-BREAK SPACE}%), 2 (below 0.1\N{NO-BREAK SPACE}%)
    """
    if not total:
        return count(value)
    share = f"below {percent(_SMALL_SHARE)}" if value / total < _SMALL_SHARE else percent(round(value / total, 3))
    return f"{count(value)} ({share})"


def kilobytes(value: float | None) -> str:
    return DASH if value is None else f"{value / 1e3:,.1f} KB"


def megabytes(value: float | None) -> str:
    return DASH if value is None else f"{value / 1e6:.2f} MB"


def seconds(value: float | None) -> str:
    return DASH if value is None else f"{value:,.2f}"


def probability(value: float | None) -> str:
    """A threshold: three places, more where it is small."""
    return DASH if value is None else f"{value:.3f}" if value >= 0.01 or value == 0.0 else f"{value:.2g}"  # noqa: PLR2004


def plain(value: Any) -> str:
    """Any JSON value in words: a nested count shows its largest entries first."""
    if value is None or value in ("", [], {}):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    if isinstance(value, Mapping):
        return listed([f"{key}: {plain(entry)}" for key, entry in largest_first(value) if entry not in (0, None)])
    return listed([plain(entry) for entry in value]) if isinstance(value, list | tuple) else str(value)


def largest_first(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Entries by falling count."""
    return sorted(values.items(), key=lambda item: -float(item[1]) if is_number(item[1]) else 0.0)


def listed(entries: list[str]) -> str:
    """Entries as far as a reader goes on, and how many more there are."""
    more = len(entries) - MAX_LISTED
    return (", ".join(entries[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")) or DASH


def names(merchants: Iterable[str]) -> str:
    """Names as prose.

    >>> names(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = [*merchants] or [DASH]
    return f"{', '.join(first)} and {last}" if first else last


def plural(number_of: float, word: str) -> str:
    """A count with its word.

    >>> plural(1, "merchant"), plural(2, "merchant")
    ('1 merchant', '2 merchants')
    """
    return f"{count(number_of)} {word}" + ("" if number_of == 1 else "s")


def heading(key: str) -> str:
    """A key of metrics.json as a column's heading.

    >>> heading("num_test_rows")
    'Test rows'
    """
    text = key.removeprefix("num_").replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def reason(code: str) -> str:
    """What a drop's code means; an unknown one is shown as it is."""
    return _REASONS.get(code, code)


def rounds(numbers: Iterable[int]) -> str:
    """Round numbers with runs drawn together.

    >>> rounds([7, 3, 8, 9])
    '3, 7\N{EN DASH}9'
    """
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}{DASH}{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
