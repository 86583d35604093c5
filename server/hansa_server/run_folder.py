"""A run's folder: all that a run takes and all that it leaves, so that any process can start it or read it.

file               written by       holds
agreement.json     create           the agreement, canonical: its SHA-256 is the fingerprint
agreement.toml     create           the same as its author wrote it, where that is known
coordinator.json   create           the path of the coordinator's signing key, where the agreement has [trust]
rounds.jsonl       the run          one line a round, as it ends (a kill can cut the last line short)
attendance.json    the run          who came (attendance.py)
checkpoint/        the run          its last state (checkpoint.py), until it is finished; a simulation has none
interruption.txt   the run          why it could not go on, where it can be resumed
model/             the run, last    spec.json, weights.npz, preprocessing.json; equal models have equal bytes
small/             the run, last    the small model, where one was released: the same three files with the weights
                                    that pruning left, and float.tflite and int8.tflite made from them
bundle/            write_bundle     what merchants score with: the small model under a signed manifest
coordinator.pub    write_bundle     the public key that it is signed with
deliveries.json    delivery.py      who has the bundle, and why others have not
hash.key           a simulation     the made-up key of hashed categories, to score with
compress/          hansa compress   choices of compression for this run, beside each other
audit/             hansa audit      what attacks found out of this run
report.html        the run, last    the report
metrics.json       the run, last    the figures; where it is, the run is finished
failure.txt        the run          why it failed, instead of the last three

Each file is there whole or not at all (but for rounds.jsonl), and on disk when its writer returns. A finished run
is never written over unless the caller says so.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from hansa_common import durable_files
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.bundle import FLOAT_NAME, INT8_NAME, TRUSTED_KEY_NAME, BundleParts, make_bundle, verify_bundle
from hansa_common.durable_files import UNFINISHED_SUFFIX
from hansa_common.errors import CoordinatorError, HansaError, RunFailedError, RunInterruptedError, UsageError
from hansa_common.features import FittedPreprocessing
from hansa_common.keys import public_key_of
from hansa_common.model import ModelSpec, load_model_parts, model_files
from hansa_common.privacy_costs import check_affordable
from hansa_common.vectors import Vector
from hansa_server.audit_gate import check_audited
from hansa_server.report import render_report

AGREEMENT: Final = "agreement.json"
AGREEMENT_TOML: Final = "agreement.toml"
COORDINATOR: Final = "coordinator.json"
ROUNDS: Final = "rounds.jsonl"
ATTENDANCE: Final = "attendance.json"
MODEL: Final = "model"
SMALL: Final = "small"
BUNDLE: Final = "bundle"
DELIVERIES: Final = "deliveries.json"
HASH_KEY: Final = "hash.key"
COMPRESS: Final = "compress"
AUDIT: Final = "audit"
CHECKPOINT: Final = "checkpoint"
REPORT: Final = "report.html"
METRICS: Final = "metrics.json"
FAILURE: Final = "failure.txt"
INTERRUPTION: Final = "interruption.txt"
_MADE_WITH: Final = ("tensorflow", "tf-keras", "tensorflow-model-optimization")
# Whoever may open the folder may read a run: it holds no row and no key.
_FOR_ALL: Final = 0o644
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class SmallModel:
    """What a small model is made of: its weights (num_params,), and the TFLite files of them."""

    weights: Vector
    float_file: bytes
    int8_file: bytes


@dataclass(frozen=True)
class FinishedRun:
    """What a finished run has left: its agreement, its figures and the model that was kept, (num_params,) weights."""

    agreement: Agreement
    metrics: Mapping[str, Any]
    spec: ModelSpec
    weights: Vector
    preprocessing: FittedPreprocessing


def create(
    folder: Path,
    agreement: Agreement,
    *,
    signing_key_file: Path | None = None,
    toml: str | None = None,
    overwrite: bool = False,
) -> None:
    """Make the folder of a run that has not begun; what an earlier run left in it is removed.

    `signing_key_file` holds the key that orders are signed with, where the agreement asks for that.

    Raises:
        UsageError: it holds a finished run and overwrite is not set, or something that is no run, or cannot be made.
        AgreementError: the run would cost more privacy than the agreement promises.
    """
    check_affordable(agreement)
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise UsageError(f"{folder} cannot be a run's folder: {error.strerror}") from error
    if names and AGREEMENT not in names:
        raise UsageError(f"{folder} holds other things than a run; give a folder that does not exist yet")
    if METRICS in names and not overwrite:
        raise UsageError(f"{folder} holds a finished run; give another folder, or say that it may be overwritten")
    if CHECKPOINT in names and FAILURE not in names and not overwrite:
        raise UsageError(f"{folder} holds a run that can go on: `hansa server resume {folder}`; or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        if toml is not None:
            durable_files.write(folder / AGREEMENT_TOML, toml.encode(), _FOR_ALL)
        if signing_key_file is not None:
            name_signing_key(folder, signing_key_file)
        durable_files.write(folder / AGREEMENT, agreement.canonical_json(), _FOR_ALL)
    except OSError as error:
        raise UsageError(f"the run's folder {folder} cannot be written: {error.strerror}") from error


def name_signing_key(folder: Path, key_file: Path) -> None:
    """Say where the key is that this run's orders are signed with."""
    durable_files.write(folder / COORDINATOR, _json_bytes({"signing_key": str(key_file.absolute())}, indent=2))


def signing_key_file(folder: Path) -> Path | None:
    """Where the key is that this run's orders are signed with; None where none was named.

    Raises:
        CoordinatorError: the file that says so is damaged.
    """
    path = folder / COORDINATOR
    try:
        return Path(json.loads(path.read_bytes())["signing_key"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CoordinatorError(f"{path} does not say where the signing key is: {error}") from error


def open_run(folder: Path) -> Agreement:
    """The agreement of a run that is to begin.

    Raises:
        UsageError: there is no such folder, or it holds a finished run.
        AgreementError: the agreement in it does not hold.
    """
    if (folder / METRICS).exists():
        raise UsageError(f"{folder} holds a finished run; give another folder")
    return _agreement(folder)


def _agreement(folder: Path) -> Agreement:
    path = folder / AGREEMENT
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable, so there is no run to begin: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not an agreement")
    return validate_agreement(values, str(path))


def open_interrupted(folder: Path) -> Agreement:
    """The agreement of a run that was broken off, and can go on from its checkpoint.

    Raises:
        UsageError: there is no such run: it is finished, has failed, or keeps no checkpoint.
        AgreementError: the agreement in it does not hold.
    """
    agreement = _agreement(folder)
    if (folder / METRICS).exists():
        raise UsageError(f"{folder} holds a finished run, so there is nothing to resume")
    if (folder / FAILURE).exists():
        raise UsageError(f"the run in {folder} has failed: {_reason(folder)}; mend that, and train into another folder")
    if not (folder / CHECKPOINT).is_dir():
        raise UsageError(f"{folder} holds no checkpoint to go on from; only `hansa server train` leaves one")
    return agreement


@contextmanager
def failure_told(folder: Path) -> Iterator[None]:
    """Leave the reason in the folder if the block fails, or cannot go on for now; the error goes on. A full disk is
    such a reason, and told to who follows the run if nothing can be left there.

    Raises:
        RunInterruptedError: the disk is full.
    """
    (folder / INTERRUPTION).unlink(missing_ok=True)
    try:
        yield
    except HansaError as error:
        _tell(folder, error)
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        interrupted = RunInterruptedError(f"the run in {folder} cannot be written: {error.strerror}; make room for it")
        _tell(folder, interrupted)
        raise interrupted from error


def _tell(folder: Path, error: HansaError) -> None:
    name = INTERRUPTION if isinstance(error, RunInterruptedError) else FAILURE
    try:
        durable_files.write(folder / name, f"{error}\n".encode(), _FOR_ALL)
    except OSError:
        sys.stderr.write(f"hansa: {error}\n")


def write_rounds(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Leave these rounds' entries and no other: a run that goes on has its rounds from its checkpoint."""
    durable_files.write(folder / ROUNDS, b"".join(_json_bytes(entry, indent=None) for entry in entries), _FOR_ALL)


def add_round(folder: Path, entry: Mapping[str, Any]) -> None:
    """Append a round's entry."""
    with (folder / ROUNDS).open("ab") as file:
        file.write(_json_bytes(entry, indent=None))
        file.flush()
        os.fsync(file.fileno())


def finish(
    folder: Path,
    metrics: Mapping[str, Any],
    spec: ModelSpec,
    weights: Vector,
    preprocessing: FittedPreprocessing,
    small: SmallModel | None = None,
) -> None:
    """Leave a finished run: the model, the small one where one was released, then the report, then metrics.json, which
    makes it finished.
    """
    durable_files.write_folder(folder / MODEL, model_files(spec, weights, preprocessing))
    if small is not None:
        networks = {FLOAT_NAME: small.float_file, INT8_NAME: small.int8_file}
        durable_files.write_folder(folder / SMALL, {**model_files(spec, small.weights, preprocessing), **networks})
    write_metrics(folder, metrics)


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the report and metrics.json; a simulation calls it again once its baselines are known."""
    durable_files.write(folder / REPORT, render_report(metrics).encode(), _FOR_ALL)
    durable_files.write(folder / METRICS, _json_bytes(metrics, indent=2), _FOR_ALL)


def write_bundle(folder: Path, private_key: bytes, hash_key_id: str | None = None) -> str:
    """Put a finished run's small model into bundle/, signed with an Ed25519 key of 32 bytes; return the public
    key, which is left beside it. `hash_key_id` is of the merchants' key where the agreement names none.

    Raises:
        UsageError: the run's folder holds no small model, the agreement names another key as the coordinator's, or
            asks for an audit that did not pass.
        RunFailedError: the run did not finish.
    """
    metrics, small, agreement = read_outcome(folder), folder / SMALL, _agreement(folder)
    check_audited(agreement, metrics)
    public_key = public_key_of(private_key)
    if agreement.trust is not None and public_key != agreement.trust.coordinator:
        raise UsageError(
            f"the signing key is that of {public_key}, the agreement names {agreement.trust.coordinator} as the "
            "coordinator's, and merchants take nothing else; give the state folder with that key (--state)"
        )
    try:
        networks = {name: (small / name).read_bytes() for name in (FLOAT_NAME, INT8_NAME)}
    except OSError as error:
        raise UsageError(f"{folder} holds no small model, so there is nothing to bundle: {error}") from error
    spec, weights, preprocessing = load_model_parts(small)
    parts = BundleParts(
        agreement=agreement,
        run_id=metrics["run_id"],
        spec=spec,
        weights=weights,
        preprocessing=preprocessing,
        float_tflite=networks[FLOAT_NAME],
        int8_tflite=networks[INT8_NAME],
        metrics=metrics,
        sparsity={"dense kernels": metrics["bundle"]["sparsity"]},
        made_with={name: version(name) for name in _MADE_WITH},
        hash_key_id=hash_key_id,
    )
    durable_files.write_folder(folder / BUNDLE, make_bundle(parts, private_key))
    durable_files.write(folder / TRUSTED_KEY_NAME, f"{public_key}\n".encode(), _FOR_ALL)
    return public_key


def read_bundle(folder: Path) -> tuple[Agreement, dict[str, bytes]]:
    """The agreement of a run and the files of its signed bundle, name -> bytes, verified under the key beside it.

    Raises:
        UsageError: there is no bundle.
        BundleError: it is not what was signed.
    """
    try:
        files = {path.name: path.read_bytes() for path in sorted((folder / BUNDLE).iterdir())}
        public_key = (folder / TRUSTED_KEY_NAME).read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"{folder} holds no signed bundle: {error.filename}: {error.strerror}") from error
    verify_bundle(files, public_key)
    return _agreement(folder), files


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / METRICS).exists()


def is_unsigned(folder: Path) -> bool:
    """Whether a finished run's small model still waits to be signed."""
    return is_finished(folder) and has_small_model(folder) and not has_bundle(folder)


def has_bundle(folder: Path) -> bool:
    """Whether a finished run's small model was signed."""
    return (folder / BUNDLE).is_dir()


def has_small_model(folder: Path) -> bool:
    """Whether a finished run's small model was released."""
    return (folder / SMALL).is_dir()


def read_outcome(folder: Path) -> dict[str, Any]:
    """The figures of a finished run.

    Raises:
        RunFailedError: the run did not finish; says why where it is known.
        CoordinatorError: metrics.json is damaged.
    """
    path = folder / METRICS
    try:
        metrics = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFailedError(_reason(folder)) from None
    except (OSError, ValueError) as error:
        raise CoordinatorError(f"{path} cannot be read: {error}") from error
    if not isinstance(metrics, dict):
        raise CoordinatorError(f"{path} does not hold a run's figures")
    return metrics


def open_finished(folder: Path) -> FinishedRun:
    """A finished run, to go on from.

    Raises:
        UsageError: the folder holds no run.
        AgreementError: its agreement does not hold here.
        RunFailedError: the run did not finish; says why where it is known.
        CoordinatorError: metrics.json is damaged.
    """
    if not (folder / AGREEMENT).is_file():
        raise UsageError(f"{folder} holds no run: there is no {AGREEMENT} in it")
    metrics = read_outcome(folder)
    return FinishedRun(_agreement(folder), metrics, *load_model_parts(folder / MODEL))


def _reason(folder: Path) -> str:
    told = next((name for name in (FAILURE, INTERRUPTION) if (folder / name).exists()), None)
    if told is None:
        where = "superlink.log in the server's state folder"
        reason = f"the run in {folder} did not finish, and left no reason in it; if none is above, {where} may hold one"
    else:
        reason = (folder / told).read_text(encoding="utf-8").strip()
    is_open = told != FAILURE and (folder / CHECKPOINT).is_dir()
    return f"{reason}; `hansa server resume {folder}` goes on with it" if is_open else reason


def _clear(folder: Path) -> None:
    # metrics.json first: a folder that is half cleared must not pass for a finished run.
    folders = [name + suffix for name in (COMPRESS, AUDIT, BUNDLE, SMALL, MODEL) for suffix in ("", UNFINISHED_SUFFIX)]
    folders.append(CHECKPOINT)
    files = (FAILURE, INTERRUPTION, REPORT, ROUNDS, ATTENDANCE, DELIVERIES, TRUSTED_KEY_NAME, HASH_KEY)
    for name in (METRICS, *files, *folders, COORDINATOR, AGREEMENT_TOML, AGREEMENT):
        durable_files.remove_all(folder / name)


def _json_bytes(values: Mapping[str, Any], indent: int | None) -> bytes:
    return (json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()
