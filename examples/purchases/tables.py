"""Event logs of shops to one row a customer: what was done in the month before a day, and whether a purchase followed.

A customer is whoever the shop knew before the cut-off; who did nothing in the month has zeros. A count looks at
[cut-off - 30 days, cut-off), the label at [cut-off, cut-off + 7 days): nothing that is to be predicted is counted.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

DAY = 86_400.0
MONTH_DAYS = 30
WEEK_DAYS = 7
COUNTS = {"purchases": "purchase", "views": "view", "searches": "search"}


def month_to_week(events: pd.DataFrame, cut_off: float) -> pd.DataFrame:
    """One row a customer, in order of shop and customer: shop, customer, purchases, views, searches, buys.

    events: shop, customer, kind ("view", "search" or "purchase"), time (seconds, as cut_off is).
    """
    customer = ["shop", "customer"]
    time = events["time"]
    known = pd.MultiIndex.from_frame(events.loc[time < cut_off, customer].drop_duplicates().sort_values(customer))
    month = events[(time >= cut_off - MONTH_DAYS * DAY) & (time < cut_off)]
    week = events[(time >= cut_off) & (time < cut_off + WEEK_DAYS * DAY)]

    def number(rows: pd.DataFrame, kind: str) -> np.ndarray:
        return rows[rows["kind"] == kind].groupby(customer).size().reindex(known, fill_value=0).to_numpy()

    counts = {column: number(month, kind) for column, kind in COUNTS.items()}
    table = known.to_frame(index=False)
    return table.assign(**counts, buys=(number(week, "purchase") > 0).astype(int))


def with_parts(table: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """The table with what divides it: `draw`, a random number by which a customer trains, validates or tests, whoever
    holds the row; and `everyone`, the same word in every row, for the pool.
    """
    return table.assign(draw=random.random(len(table)).round(6), everyone="all shops")
