"""The options of a command line that say what a merchant takes part with: the same for starting it, checking it, and
looking at what it left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TableOption = Annotated[Path, typer.Option(help="This merchant's table: CSV, gzip CSV or Parquet.")]
StateOption = Annotated[
    Path | None, typer.Option(help="Where this merchant has enrolled.", show_default="the one merchant's in .hansa")
]
StartedStateOption = Annotated[
    Path | None,
    typer.Option(help="The state folder of `hansa client start`.", show_default="the one merchant's in .hansa"),
]
AgreementOption = Annotated[
    Path | None,
    typer.Option(help="Another agreement (TOML) that is approved.", show_default="the one approved last"),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(help="What this merchant permits beyond the agreement (TOML).", show_default="STATE/merchant.toml"),
]
HashKeyOption = Annotated[
    Path | None, typer.Option(help="The merchants' key for hashed categories, 64 hexadecimal digits.")
]
LedgerOption = Annotated[
    Path | None,
    typer.Option(help="The privacy ledger's folder, where several federations share one.", show_default="STATE/ledger"),
]
LedgerHeadOption = Annotated[
    Path | None,
    typer.Option(help="The file outside it that says how far it is.", show_default="among this user's state"),
]
