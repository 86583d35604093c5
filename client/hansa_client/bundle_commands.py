"""`hansa bundle show | verify | diff` and `hansa score`: a finished model at the merchant who uses it. Errors are
raised: the dispatcher tells them.

pandas and the interpreter are imported inside the commands, so that `hansa --help` stays quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa_common.errors import DataError, UsageError

if TYPE_CHECKING:
    from hansa_client.scoring import Scores
    from hansa_common.bundle import Bundle

bundle = typer.Typer(name="bundle", help="Look at a finished model, verify it, compare two.", no_args_is_help=True)
score = typer.Typer(name="score", help="Score a table with a finished model.", add_completion=False)

Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")]
Key = Annotated[
    str | None,
    typer.Option(
        help="The coordinator's public key: 64 hexadecimal digits, or a file of them.",
        show_default="coordinator.pub beside the bundle",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@bundle.callback()
def _group() -> None:
    """Look at a finished model, verify it, compare two."""


@bundle.command()
def show(
    folder: Folder,
    key: Annotated[str | None, typer.Option(help="Also check that this key signed it; digits or a file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a bundle holds, if it is whole; whom to trust is asked with --key only."""
    from hansa_client import bundle_texts
    from hansa_client.bundle_files import open_claimed, open_trusted

    opened = open_claimed(folder) if key is None else open_trusted(folder, key)
    facts = bundle_texts.facts(opened, is_trusted=key is not None)
    typer.echo(json.dumps(facts) if as_json else bundle_texts.shown(facts))


@bundle.command()
def verify(
    folder: Folder,
    key: Key = None,
    agreement: Annotated[
        Path | None, typer.Option(help="Also check that it is a model of this agreement (TOML).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a bundle is whole and signed by the key that this merchant trusts."""
    from hansa_client.bundle_files import open_trusted

    opened = open_trusted(folder, key)
    if agreement is not None:
        _check_agreement(opened, agreement)
    if as_json:
        typer.echo(json.dumps({"bundle": opened.bundle_id, "signer": opened.signer}))
    else:
        typer.echo(f"{folder} is whole, and signed by {opened.signer}")


@bundle.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Say in what two bundles differ: files, agreement, features, network, weights, figures."""
    from hansa_client import bundle_texts
    from hansa_client.bundle_files import open_claimed

    differences = bundle_texts.differences(open_claimed(first), open_claimed(second))
    if as_json:
        typer.echo(json.dumps(differences))
    else:
        typer.echo("\n".join(bundle_texts.told(differences)) if differences else "the two bundles are the same")


@score.command()
def score_file(
    folder: Folder,
    data: Annotated[Path, typer.Argument(help="A table without labels: CSV, gzip CSV or Parquet.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the scores are written (CSV).")] = Path("scores.csv"),
    hash_key: Annotated[
        Path | None, typer.Option(help="The merchants' key for hashed categories, 64 hexadecimal digits.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="The score from which on a row is decided positive.",
            show_default="threshold.json beside the bundle",
        ),
    ] = None,
    key: Key = None,
    force: Annotated[bool, typer.Option("--force", help="Write over existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Score a table with a finished model; rows that cannot be read go to a file of their own."""
    from hansa_client.bundle_files import open_trusted, read_threshold
    from hansa_client.merchant_files import read_key
    from hansa_client.scoring import score_table

    rejected_out = out.with_name(f"{out.stem}.rejected.csv")
    _refuse_overwriting([out, rejected_out], force=force)
    opened = open_trusted(folder, key)
    used = read_threshold(folder, opened.bundle_id) if threshold is None else threshold
    scored = score_table(data, opened, None if hash_key is None else read_key(hash_key))
    _write(scored, used, out, rejected_out)
    if scored.rejected and not scored.rows.size:
        raise DataError(f"no row of {data} could be scored; {rejected_out} says why, row by row")
    summary = _summary(scored, used, out, rejected_out)
    typer.echo(json.dumps(summary) if as_json else _told(summary, folder))


def _check_agreement(opened: Bundle, path: Path) -> None:
    from hansa_common.agreement_file import read_agreement
    from hansa_common.errors import BundleError

    agreement, _ = read_agreement(path)
    found = opened.manifest.agreement_fingerprint
    if found != agreement.fingerprint:
        raise BundleError(f"the bundle is of agreement {found}, {path} has the fingerprint {agreement.fingerprint}")
    if opened.preprocessing.features != agreement.features:
        raise BundleError(f"the bundle's preprocessing.json has other features than {path}")


def _refuse_overwriting(paths: list[Path], *, force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise UsageError(f"{path} exists; give another file with -o, or --force to write over it")


def _write(scored: Scores, threshold: float | None, out: Path, rejected_out: Path) -> None:
    from hansa_client.scoring import rejected_csv, scores_csv
    from hansa_common import durable_files

    durable_files.write(out, scores_csv(scored, threshold))
    if scored.rejected:
        durable_files.write(rejected_out, rejected_csv(scored))
    else:
        # One of an earlier run would speak of other rows.
        durable_files.remove(rejected_out)


def _summary(scored: Scores, threshold: float | None, out: Path, rejected_out: Path) -> dict[str, Any]:
    return {
        "scores": str(out),
        "num_scored": len(scored.rows),
        "num_rejected": scored.num_rejected_rows,
        "rejected": str(rejected_out) if scored.rejected else None,
        "threshold": threshold,
        "num_positive": None if threshold is None else int(scored.decisions(threshold).sum()),
    }


def _told(summary: dict[str, Any], folder: Path) -> str:
    lines = [f"{summary['num_scored']:,} rows scored: {summary['scores']}"]
    if summary["num_rejected"]:
        lines.append(f"{summary['num_rejected']:,} rows could not be read: {summary['rejected']}")
    if summary["threshold"] is None:
        lines.append(
            f"no decisions: there is no threshold.json beside {folder}; give a threshold with --threshold to have some"
        )
    else:
        lines.append(f"{summary['num_positive']:,} rows are decided positive, from {summary['threshold']:.6g} on")
    return "\n".join(lines)
