"""The columns of a shop's table as sections of an agreement (TOML): what tests of several commands agree on."""

from __future__ import annotations

from typing import Final

BUYS: Final = """
[label]
column = "buys"
"""
AMOUNT: Final = """
[[features]]
kind = "numeric"
name = "amount"
low = 0
high = 100
missing = "refuse"
"""
MEMBER: Final = """
[[features]]
kind = "boolean"
name = "member"
missing = "refuse"
"""
