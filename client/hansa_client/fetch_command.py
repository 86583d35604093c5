"""`hansa client fetch`: the delivered bundle out of the state folder to where it is used, and the merchant's threshold.

It works while the trainer runs and when it was stopped: the trainer has verified the bundle and found the threshold on
its rows when the bundle came, and here it is verified once more. A folder that is no bundle, and a key that is another
one, are never written over; another bundle and its threshold only with --force.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa_client.participation_options import StartedStateOption
from hansa_client.state_folders import state_folder
from hansa_common.errors import UsageError

if TYPE_CHECKING:
    from hansa_client.delivery import Kept, OwnDecision


def fetch(
    state: StartedStateOption = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to put the bundle into.")] = Path("bundle"),
    force: Annotated[bool, typer.Option("--force", help="Write over another bundle and its threshold.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch the finished bundle that the coordinator delivered, with this merchant's own threshold beside it."""
    from hansa_client.delivery import Kept

    kept = Kept.read(state_folder(state))
    place(kept, out, force=force)
    facts = _facts(kept, out)
    typer.echo(json.dumps(facts) if as_json else _told(facts))


def place(kept: Kept, out: Path, *, force: bool) -> None:
    """Put the bundle into the folder `out`, and beside it the key that signed it and the threshold, if there is one.

    Raises:
        UsageError: something is there that may not be written over.
        BundleError: the folder holds something that no bundle has.
    """
    from hansa_client.bundle_files import THRESHOLD_NAME, write_threshold
    from hansa_common import durable_files
    from hansa_common.bundle import TRUSTED_KEY_NAME

    # Resolved, so that what stands beside `.` is beside it.
    folder = out.resolve()
    _refuse_another_key(folder, kept.bundle.signer)
    _refuse_another_folder(folder, kept.files, force=force)
    is_other = _is_other_threshold(folder, kept.own)
    if is_other and not force:
        raise UsageError(
            f"{folder.parent / THRESHOLD_NAME} holds another threshold; give another folder with -o, or --force to "
            "write over it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    durable_files.write(folder.parent / TRUSTED_KEY_NAME, f"{kept.bundle.signer}\n".encode())
    durable_files.write_folder(folder, kept.files)
    if kept.own.threshold is not None:
        write_threshold(folder, kept.own.bundle, kept.own.threshold)
    elif is_other:
        durable_files.remove(folder.parent / THRESHOLD_NAME)


def _refuse_another_key(folder: Path, signer: str) -> None:
    from hansa_client.bundle_files import trusted_key
    from hansa_common.bundle import TRUSTED_KEY_NAME

    path = folder.parent / TRUSTED_KEY_NAME
    if path.exists() and trusted_key(folder, None) != signer:
        raise UsageError(
            f"{path} trusts another key than {signer}, which signed this bundle; give another folder with -o, or "
            "remove the file if the coordinator says, by another way, that its key is new"
        )


def _refuse_another_folder(folder: Path, files: dict[str, bytes], *, force: bool) -> None:
    from hansa_client.bundle_files import read_files
    from hansa_common.bundle import FILE_NAMES, MANIFEST_NAME

    there = read_files(folder) if folder.exists() else {}
    if there and (MANIFEST_NAME not in there or not FILE_NAMES.issuperset(there)):
        raise UsageError(f"{folder} holds other things than a bundle; give another folder with -o")
    if there and there != files and not force:
        raise UsageError(f"{folder} holds another bundle; give another folder with -o, or --force to write over it")


def _is_other_threshold(folder: Path, own: OwnDecision) -> bool:
    """Whether there is a threshold of another bundle, or another one of this; where this has none, any may stay."""
    from hansa_client.bundle_files import read_threshold

    try:
        there = read_threshold(folder, own.bundle)
    except UsageError:
        return True
    return there is not None and own.threshold not in {None, there}


def _facts(kept: Kept, out: Path) -> dict[str, Any]:
    """What `hansa client fetch` says, as plain values."""
    from hansa_client import bundle_texts

    shown = bundle_texts.facts(kept.bundle, is_trusted=True)
    names = ("bundle", "signer", "agreement_fingerprint", "run_id", "hash_key_id", "scores_with", "metrics")
    own = kept.own.model_dump(mode="json", exclude={"bundle", "key_from"})
    return {"folder": str(out), "key_from": kept.own.key_from, **{name: shown[name] for name in names}, "own": own}


def _told(facts: dict[str, Any]) -> str:
    """The same as lines."""
    lines = [
        f"{facts['folder']} holds bundle {facts['bundle']}",
        f"  of run {facts['run_id']} under agreement {facts['agreement_fingerprint']}",
        f"  signed by {facts['signer']}, {_origin(facts['key_from'])}",
    ]
    for name, figures in facts["metrics"].items():
        lines.append(f"  {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()))
    own = facts["own"]
    rows = f"{own['num_rows']:,} validation rows, {own['num_positives']:,} of them positive"
    if own["threshold"] is None:
        lines.append(f"there is no threshold of yours: {own['reason']} ({rows}); give one to hansa score --threshold")
    else:
        lines.append(f"your threshold is {own['threshold']:.6g}: best F1 {own['f1']:.4f} on your {rows}")
    hashing = "" if facts["hash_key_id"] is None else " --hash-key hash.key"
    return "\n".join([*lines, f"score with it: hansa score {facts['folder']} NEW.csv -o scores.csv{hashing}"])


def _origin(key_from: str) -> str:
    if key_from == "agreement":
        return "the key that the agreement names"
    return "the key of the first delivery; compare it with the coordinator by another way"
