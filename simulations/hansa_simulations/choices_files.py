"""What `hansa compress` leaves in its folder.

file           holds
choices.json   every choice with its sizes, losses, figures and reason, which one was chosen, and the verdict
choices.png    size against loss (choices_figure.py)
the rest       a finished run's files (run_folder.py) as they would stand under the chosen agreement: agreement.json,
               model, small, metrics.json, report.html, the signed bundle with its key; none where no choice is allowed

choices.json comes last: where it is, the folder is whole. A folder with anything but earlier choices is left alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hansa_common import durable_files
from hansa_server import run_folder
from hansa_server.audit_gate import unaudited
from hansa_server.run_folder import FinishedRun, SmallModel
from hansa_simulations.choices import Choice, Limits, least_lossy, named, smallest_allowed
from hansa_simulations.choices_figure import choices_png
from hansa_simulations.out_folders import OutFolder
from hansa_simulations.scenario import sign_bundle

CHOICES: Final = "choices.json"
FIGURE: Final = "choices.png"
_FOR_ALL: Final = 0o644
_OF_A_SMALL_MODEL: Final = ("compressed", "compression", "bundle", "audit")


@dataclass(frozen=True)
class Choices:
    """All choices of a run by rising sparsity, and what they were made under."""

    run: FinishedRun
    limits: Limits
    tried: tuple[Choice, ...]

    @property
    def chosen(self) -> Choice | None:
        """The smallest that is allowed."""
        return smallest_allowed(self.tried)

    @property
    def verdict(self) -> str:
        """What was chosen and what the data carry, in words."""
        chosen, loss = self.chosen, f"{self.limits.max_loss:g}"
        if chosen is None:
            best = least_lossy(self.tried)
            told = f"no small model came of it: {self.tried[0].finished.refusal}" if best is None else _least(best)
            return f"No choice stays within a loss of {loss}; {told}. The float model remains."
        smallest = f"The smallest choice within a loss of {loss} is {named(chosen.sparsity)}: {_told(chosen)}."
        asked = max(choice.sparsity for choice in self.tried if choice.asked)
        if self.carried is None or self.carried >= asked:
            return smallest
        return (
            f"The data do not carry {named(asked)} within a loss of {loss}; what they carry is {named(self.carried)}. "
            f"{smallest}"
        )

    @property
    def carried(self) -> float | None:
        """The highest sparsity that is allowed, None where not even int8 alone is."""
        return max((choice.sparsity for choice in self.tried if choice.is_allowed), default=None)

    def to_json(self) -> dict[str, Any]:
        """What stands in choices.json."""
        metrics, chosen, best = self.run.metrics, self.chosen, least_lossy(self.tried)
        return {
            "run_id": metrics["run_id"],
            "agreement_fingerprint": metrics["agreement_fingerprint"],
            "max_loss": self.limits.max_loss,
            "pruning_rounds": self.limits.pruning_rounds,
            "federated": {name: metrics["federated"].get(name) for name in ("roc_auc", "pr_auc")},
            "choices": [choice.to_json() for choice in self.tried],
            "chosen": None if chosen is None else chosen.sparsity,
            "least_lossy": None if best is None else best.sparsity,
            "carried": self.carried,
            "verdict": self.verdict,
        }


def out_folder(out: Path) -> OutFolder:
    """The folder that choices are left in."""
    return OutFolder(out, CHOICES, "choices of compression")


def leave(choices: Choices, out: Path) -> None:
    """Write the folder anew.

    Raises:
        UsageError: it holds anything but earlier choices, or cannot be written.
    """
    out_folder(out).make_anew()
    if choices.chosen is not None:
        _leave_run(choices.run, choices.chosen, out)
    durable_files.write(out / FIGURE, choices_png(choices.tried, choices.chosen, choices.limits.max_loss), _FOR_ALL)
    text = json.dumps(choices.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    durable_files.write(out / CHOICES, f"{text}\n".encode(), _FOR_ALL)


def _leave_run(run: FinishedRun, chosen: Choice, out: Path) -> None:
    files = chosen.finished.released
    if files is None:
        raise ValueError("a choice that is not released leaves no run")
    run_folder.create(out, chosen.agreement)
    small = SmallModel(chosen.finished.weights, files.float_file, files.int8_file)
    run_folder.finish(out, _metrics(run, chosen), run.spec, run.weights, run.preprocessing, small)
    if not chosen.agreement.audit.is_gate:
        sign_bundle(out, chosen.agreement)


def _metrics(run: FinishedRun, chosen: Choice) -> dict[str, Any]:
    """The run's figures with those of the chosen small model in the place of its own."""
    kept = {name: value for name, value in run.metrics.items() if name not in _OF_A_SMALL_MODEL}
    found = chosen.found["merchants"]
    merchants = {
        name: {**values, "compressed": found[name]["compressed"]} for name, values in run.metrics["merchants"].items()
    }
    own = {**chosen.finished.to_json(), "compressed": chosen.found["compressed"], **unaudited(chosen.agreement)}
    return {**kept, "agreement_fingerprint": chosen.agreement.fingerprint, "merchants": merchants, **own}


def _told(choice: Choice) -> str:
    size = 0 if choice.report is None else choice.report.gzip_bytes
    told = f"{size / 1000:.1f} KB after gzip"
    if choice.loss is not None:
        told += f", PR-AUC {-choice.loss.estimate:+.4f} on validation rows"
    kept, small = (choice.found.get(party, {}).get("pr_auc") for party in ("federated", "compressed"))
    return told if kept is None or small is None else f"{told}, {small - kept:+.4f} on test rows"


def _least(best: Choice) -> str:
    return f"the one that loses least is {named(best.sparsity)}, {_told(best)}"
