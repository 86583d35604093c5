"""What each column of an undeclared table seems to be, by rules that a person can check.

| the present values of a column                                       | kind                                    |
|----------------------------------------------------------------------|-----------------------------------------|
| a true and a false: TRUE/FALSE, yes/no, 1/0                           | boolean                                 |
| whole numbers, none below 1, at most 20 different                     | categorical: codes count from 1         |
| whole numbers from 2000 to 2100 in seconds, "time" or "date" in name  | timestamp in seconds                    |
| other numbers: counts start at 0                                      | numeric                                 |
| ISO dates or times                                                    | timestamp                               |
| anything else                                                         | categorical                             |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hansa_client import cells

Kind = Literal["numeric", "categorical", "boolean", "iso", "seconds"]

MAX_CODES: Final = 20
FIRST_CODE: Final = 1
FIRST_SECOND: Final = 946_684_800  # 2000-01-01
LAST_SECOND: Final = 4_102_444_800  # 2100-01-01
_TRUTH_VALUES: Final = (0.0, 1.0)


@dataclass(frozen=True)
class Profile:
    """One column, parsed as its kind.

    array: (rows,) as cells.py parses that kind. distinct: (num_distinct,) its different present values.
    codes: (rows,) int64 place in `distinct`, -1 where missing. counts: (num_distinct,) rows with each.
    holds_codes: it is categorical only because it holds few whole numbers.
    """

    name: str
    kind: Kind
    array: NDArray[Any]
    distinct: NDArray[Any]
    codes: NDArray[np.int64]
    holds_codes: bool = False

    @property
    def num_distinct(self) -> int:
        return len(self.distinct)

    @property
    def num_missing(self) -> int:
        return int(np.sum(self.codes < 0))

    @property
    def num_present(self) -> int:
        return len(self.codes) - self.num_missing

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.bincount(self.codes[self.codes >= 0], minlength=self.num_distinct)

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return self.kind in {"numeric", "seconds"} and _are_whole(self.distinct)


def profile(name: str, column: pd.Series[Any]) -> Profile:
    """Find out a column's kind and parse it."""
    numbers = cells.numbers(column)
    if len(numbers.bad) == 0 and not np.isnan(numbers.array).all():
        return _number_profile(name, column, numbers.array)
    booleans = cells.booleans(column)
    if _holds_both_truth_values(booleans):
        return _profile(name, "boolean", booleans.array)
    moments = cells.moments(column)
    if len(moments.bad) == 0 and not np.isnan(moments.array).all():
        return _profile(name, "iso", moments.array)
    return _profile(name, "categorical", cells.texts(column).array)


def words_of(name: str) -> set[str]:
    """The lower-case words of a column's name.

    >>> sorted(words_of("CustomerID")), sorted(words_of("order_time2"))
    (['customer', 'id'], ['order', 'time'])
    """
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _number_profile(name: str, column: pd.Series[Any], numbers: NDArray[np.float64]) -> Profile:
    profiled = _profile(name, "numeric", numbers)
    distinct = profiled.distinct
    if tuple(np.sort(distinct)) == _TRUTH_VALUES:
        return _profile(name, "boolean", numbers)
    if not _are_whole(distinct):
        return profiled
    if len(distinct) <= MAX_CODES and distinct.min() >= FIRST_CODE:
        return replace(_profile(name, "categorical", cells.texts(column).array), holds_codes=True)
    in_seconds = distinct.min() >= FIRST_SECOND and distinct.max() <= LAST_SECOND
    if in_seconds and words_of(name) & {"time", "timestamp", "date", "datetime"}:
        return _profile(name, "seconds", numbers)
    return profiled


def _profile(name: str, kind: Kind, array: NDArray[Any]) -> Profile:
    codes, distinct = pd.factorize(array)
    return Profile(name, kind, array, np.asarray(distinct), np.asarray(codes, np.int64))


def _holds_both_truth_values(booleans: cells.Parsed) -> bool:
    return len(booleans.bad) == 0 and set(_TRUTH_VALUES) <= set(np.unique(booleans.array))


def _are_whole(values: NDArray[np.float64]) -> bool:
    return bool(np.all(values == np.floor(values)))
