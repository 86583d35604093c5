"""`hansa simulate` and `hansa demo`: a federation of one machine's tables, what it was worth, and the report.

Errors are raised: the dispatcher tells them. Everything heavy is imported inside the commands, so that
`hansa --help` stays quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hansa_common.agreement import Agreement, parse_agreement
from hansa_common.agreement_file import read_agreement
from hansa_common.errors import UsageError
from hansa_common.nearest import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from hansa_client.data import MerchantTable
    from hansa_simulations.scenario import Baseline, Scenario

BASELINES: Final[tuple[Baseline, ...]] = ("local", "pooled")
DEMO_AGREEMENT: Final = "demo_agreement.toml"
DEMO_SOURCE: Final = "synthetic card payments"

simulate = typer.Typer(
    name="simulate", help="Run a federation of one table's silos in this process.", add_completion=False
)
demo = typer.Typer(
    name="demo", help="See five synthetic merchants train together, and what it was worth.", add_completion=False
)


@simulate.command()
def run_silos(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML); an empty roster takes all silos.")],
    data: Annotated[Path, typer.Argument(help="A table of all merchants' rows: CSV, gzip CSV or Parquet.")],
    silo: Annotated[str, typer.Option(help="The column whose values are the merchants, or bands: Amount:0,1,10.")],
    out: Annotated[Path, typer.Option(help="The run's folder; must not exist yet.")],
    min_silo_rows: Annotated[int, typer.Option(min=1, help="Merge silos with fewer rows into one.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Another seed than the agreement's.")] = None,
    baselines: Annotated[str, typer.Option(help="Compare with: local, pooled, or local,pooled.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Write over a finished run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with metrics.json; progress to stderr.")] = False,
) -> None:
    """Run a federation of one table's silos in this process."""
    wanted = parse_baselines(baselines)
    quieten_tensorflow()
    with progress_to_stderr(as_json):
        from hansa_client.silos import parse_silo, split_silos
        from hansa_client.tables import read_frame

        spec = parse_silo(silo)
        agreed, text = read_agreement(agreement)
        if seed is not None:
            agreed = agreed.with_seed(seed)
        frames = split_silos(read_frame(data), spec, min_silo_rows)
        about = {"source": data.name, "silos": silo, "min_silo_rows": min_silo_rows}
        scenario = _scenario(agreed, frames, str(data), wanted, about)
        # The file says what this run agreed on only where nothing was changed or filled in.
        toml = text if scenario.agreement == parse_agreement(text, str(agreement)) else None
        metrics = _run(scenario, out, toml=toml, overwrite=force)
    _tell(metrics, out, as_json=as_json)


@demo.command()
def run_demo(
    out: Annotated[Path, typer.Option(help="The run's folder; an earlier run in it is written over.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another world.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="End with metrics.json; progress to stderr.")] = False,
) -> None:
    """Train a fraud model over five synthetic merchants, alone, together and pooled, and report what it was worth."""
    quieten_tensorflow()
    with progress_to_stderr(as_json):
        scenario = demo_scenario(seed)
        metrics = _run(scenario, out, overwrite=True)
    _tell(metrics, out, as_json=as_json)


def demo_scenario(seed: int) -> Scenario:
    """Five merchants of the synthetic world under the embedded agreement, compared with both baselines."""
    from importlib.resources import files

    from hansa_common.randomness import generator
    from hansa_simulations.merchants import FIVE_MERCHANTS, payments

    text = files("hansa_simulations").joinpath(DEMO_AGREEMENT).read_text(encoding="utf-8")
    agreement = parse_agreement(text, "the demo's agreement").with_seed(seed)
    rows = payments(FIVE_MERCHANTS, generator(seed, "synthetic world"))
    frames = {str(name): frame for name, frame in rows.groupby("merchant", sort=False)}
    return _scenario(agreement, frames, "the synthetic world", BASELINES, {"source": DEMO_SOURCE})


def parse_baselines(text: str) -> tuple[Baseline, ...]:
    """Read what stands after --baselines.

    Raises:
        UsageError: a word is no baseline.

    >>> parse_baselines("pooled, local"), parse_baselines("")
    (('local', 'pooled'), ())
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in BASELINES]
    if unknown:
        raise UsageError(f"--baselines: no baseline {unknown[0]!r}{did_you_mean(unknown[0], BASELINES)}")
    return tuple(baseline for baseline in BASELINES if baseline in words)


def _scenario(
    agreement: Agreement,
    frames: Mapping[str, pd.DataFrame],
    source: str,
    baselines: tuple[Baseline, ...],
    about_data: dict[str, Any],
) -> Scenario:
    from hansa_simulations.scenario import Scenario

    agreed = agreement.without_trust() if agreement.roster else agreement.with_roster(tuple(frames))
    return Scenario(agreed, merchant_tables(agreed, frames, source), baselines, about_data)


def merchant_tables(
    agreement: Agreement, frames: Mapping[str, pd.DataFrame], source: str
) -> Mapping[str, MerchantTable]:
    """Every silo's rows as its merchant reads them, in the order of the roster.

    Raises:
        UsageError: the silos are not the roster.
        DataError: a table cannot be read as agreed.
    """
    from hansa_client.data import merchant_table
    from hansa_simulations.scenario import check_roster

    # Before the tables are parsed: a wrong --silo is told at once.
    check_roster(agreement.roster, tuple(frames))
    return {
        name: merchant_table(frames[name], agreement, name, f"{source}, silo {name!r}") for name in agreement.roster
    }


def _run(scenario: Scenario, out: Path, *, toml: str | None = None, overwrite: bool = False) -> Mapping[str, Any]:
    from hansa_simulations.display import BaselineDisplay
    from hansa_simulations.scenario import run_scenario

    with BaselineDisplay() as display:
        return run_scenario(scenario, out, toml=toml, overwrite=overwrite, on_baseline=display.show).metrics


def _tell(metrics: Mapping[str, Any], out: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    from hansa_server.run_folder import REPORT
    from hansa_simulations.display import print_summary

    print_summary(metrics, out / REPORT)


@contextlib.contextmanager
def progress_to_stderr(is_asked: bool) -> Iterator[None]:
    """Keep standard output for what a machine reads, where that is asked for."""
    with contextlib.redirect_stdout(sys.stderr) if is_asked else contextlib.nullcontext():
        yield


def quieten_tensorflow() -> None:
    """Call before TensorFlow is imported."""
    # It greets on standard error in a dozen lines; its errors still come.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
