"""Which rows of a merchant train, which choose (validation) and which judge (test).

- Every row is in exactly one part, and no part is empty.
- The same rows, agreement and merchant give the same parts; no other merchant changes them.
- stratified: every part holds both classes, in their shares as far as whole rows allow.
- time: no training row is later than a validation row, no validation row later than a test row.

| case                                                   | outcome                                        |
|--------------------------------------------------------|------------------------------------------------|
| stratified, fewer than three rows of a class           | DataError: not one for each part               |
| time, validation or test rows of one class only        | allowed: figures over such a part are not told |
| time, training rows of one class only, or a part empty | DataError                                      |
| equal times at a boundary drawn by shares              | divided in the order of the table              |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.agreement_sections import Data
from hansa_common.errors import DataError

Rows = NDArray[np.int64]
NUM_PARTS: Final = 3


@dataclass(frozen=True)
class Split:
    """Row numbers of each part, ascending; together they are all rows."""

    train: Rows
    validation: Rows
    test: Rows


def stratified_split(labels: NDArray[np.uint8], data: Data, shuffle: np.random.Generator, source: str) -> Split:
    """Draw test and validation rows from each class.

    labels: (rows,) 0 or 1.

    Raises:
        DataError: a class has too few rows to be in every part.
    """
    tests, validations = [], []
    for label, name in ((0, "negative"), (1, "positive")):
        rows = np.flatnonzero(labels == label)
        if len(rows) < NUM_PARTS:
            raise DataError(
                f"{source}: too few {name} rows: {len(rows)}; each of train, validation and test needs one. "
                "Gather more rows, or merge this merchant with another"
            )
        num_test, num_validation = _part_sizes(len(rows), data)
        drawn = shuffle.permutation(rows)
        tests.append(drawn[:num_test])
        validations.append(drawn[num_test : num_test + num_validation])
    return _split(len(labels), np.concatenate(validations), np.concatenate(tests))


def time_split(moments: NDArray[np.float64], labels: NDArray[np.uint8], data: Data, source: str) -> Split:
    """Take the latest rows for test, those before them for validation, and train on the rest.

    moments: (rows,) finite, in the unit of the agreement's boundaries; labels: (rows,) 0 or 1.

    Raises:
        DataError: a part has no rows, or the training rows hold one class only.
    """
    if data.test_from is not None and data.validation_from is not None:
        test = np.flatnonzero(moments >= data.test_from)
        validation = np.flatnonzero((moments >= data.validation_from) & (moments < data.test_from))
    else:
        by_time = np.argsort(moments, kind="stable")
        num_test, num_validation = _part_sizes(len(by_time), data)
        test = by_time[len(by_time) - num_test :]
        validation = by_time[len(by_time) - num_test - num_validation : len(by_time) - num_test]
    split = _split(len(moments), validation, test)
    _refuse_poor_parts(split, moments, labels, data, source)
    return split


def _part_sizes(num_rows: int, data: Data) -> tuple[int, int]:
    """Test and validation rows of num_rows: the shares, but at least one row for every part where there are three.

    >>> _part_sizes(10, Data(test_share=0.2, validation_share=0.1)), _part_sizes(3, Data(test_share=0.8))
    ((2, 1), (1, 1))
    """
    num_test = min(max(1, round(num_rows * data.test_share)), num_rows - 2)
    num_validation = min(max(1, round(num_rows * data.validation_share)), num_rows - 1 - num_test)
    return max(num_test, 0), max(num_validation, 0)


def _split(num_rows: int, validation: Rows, test: Rows) -> Split:
    is_train = np.ones(num_rows, np.bool_)
    is_train[validation] = False
    is_train[test] = False
    return Split(np.flatnonzero(is_train), np.sort(validation), np.sort(test))


def _refuse_poor_parts(
    split: Split, moments: NDArray[np.float64], labels: NDArray[np.uint8], data: Data, source: str
) -> None:
    for name, rows in (("train", split.train), ("validation", split.validation), ("test", split.test)):
        if len(rows) == 0:
            raise DataError(
                f"{source}: the {name} part has no rows: {len(moments)} rows from {moments.min():.15g} to "
                f"{moments.max():.15g} in {data.time_column!r}, validation_from {data.validation_from}, "
                f"test_from {data.test_from}"
            )
    num_positives = int(labels[split.train].sum())
    if num_positives in {0, len(split.train)}:
        only = "positive" if num_positives else "negative"
        raise DataError(
            f"{source}: every one of the {len(split.train)} training rows, by {data.time_column!r}, is {only}; "
            "move validation_from, or gather more rows"
        )
