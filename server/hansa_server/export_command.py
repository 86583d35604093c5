"""`hansa server export`: what a finished run is for, without what it was made with: for merchants, or an archive.

name             holds
model/           the network's specification, its weights, the fitted preprocessing
bundle/          the signed small model, where there is one, and coordinator.pub, the key that it was verified under
metrics.json     the figures
report.html      the report
agreement.json   the agreement, canonical

The folder is there whole or not at all. An unfinished run, and a bundle that is not what was signed, are refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Final

import typer

from hansa_common import durable_files
from hansa_common.bundle import TRUSTED_KEY_NAME, claimed_signer, verify_bundle
from hansa_common.errors import BundleError, UsageError
from hansa_server import run_folder

_FILES: Final = (run_folder.AGREEMENT, run_folder.METRICS, run_folder.REPORT)


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to make; must not exist yet.")],
) -> None:
    """Copy a finished run's model, its verified bundle, figures and report into a folder."""
    names = export_run(run, out)
    typer.echo(f"server: {out} holds {', '.join(names)}")


def export_run(run: Path, out: Path) -> list[str]:
    """Make the folder, and return the names in it.

    Raises:
        UsageError: `out` exists or cannot be written, there is no run, or its small model is not signed yet.
        RunFailedError: the run did not finish; says why where it is known.
        BundleError: the bundle is not what was signed, is another run's, or is signed by another key than the agreement
            names.
    """
    if out.exists():
        raise UsageError(f"{out} exists; give a folder that does not exist yet with -o")
    metrics = run_folder.read_outcome(run)
    bundle = _verified_bundle(run, metrics["run_id"])
    unfinished = out.with_name(out.name + durable_files.UNFINISHED_SUFFIX)
    try:
        durable_files.remove_all(unfinished)
        unfinished.mkdir(parents=True)
        shutil.copytree(run / run_folder.MODEL, unfinished / run_folder.MODEL)
        if bundle is not None:
            # The bytes that were verified, not the files that they were in.
            durable_files.write_folder(unfinished / run_folder.BUNDLE, bundle)
            shutil.copyfile(run / TRUSTED_KEY_NAME, unfinished / TRUSTED_KEY_NAME)
        for name in _FILES:
            shutil.copyfile(run / name, unfinished / name)
        durable_files.rename(unfinished, out)
    except OSError as error:
        raise UsageError(f"{out} cannot be made: {error.filename}: {error.strerror}") from error
    return sorted(path.name for path in out.iterdir())


def _verified_bundle(run: Path, run_id: str) -> dict[str, bytes] | None:
    if not run_folder.has_bundle(run):
        if run_folder.has_small_model(run):
            raise UsageError(f"the small model in {run} is not signed yet; `hansa server deliver {run}` does that")
        return None
    agreement, files = run_folder.read_bundle(run)
    key = claimed_signer(files) if agreement.trust is None else agreement.trust.coordinator
    manifest = verify_bundle(files, key)
    if (manifest.run_id, manifest.agreement_fingerprint) != (run_id, agreement.fingerprint):
        raise BundleError(f"{run / run_folder.BUNDLE} is signed, and of another run or another agreement than {run}")
    return files
