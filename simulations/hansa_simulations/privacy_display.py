"""What `hansa privacy plan` shows while it tries, and what it prints in the end: sections of an agreement, and why."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from hansa_common.agreement import Agreement
from hansa_common.privacy_costs import run_epsilon
from hansa_server.moving_line import MovingLine
from hansa_simulations.privacy_plan import PrivacyPlan, toml_of
from hansa_simulations.privacy_trials import Tried


class PlanDisplay(MovingLine):
    """A line that moves while plans are tried, and one that stays for each that was."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__("plans", 1.0, Console(stderr=True) if console is None else console)

    def begin(self, agreement: Agreement, share_done: float) -> None:
        """A plan is to be tried; about such a share of all is done."""
        self._bar.update(self._task, completed=share_done, description=f"trying {named(agreement)}")

    def tried(self, tried: Tried) -> None:
        """It was tried."""
        area = "no model" if tried.validation is None else f"validation PR-AUC {tried.validation.pr_auc:.4f}"
        self._console.print(Text(f"tried {named(tried.agreement)}: {area}"), soft_wrap=True)


def named(agreement: Agreement) -> str:
    """A plan in a few words."""
    plan, dp = agreement.training.plan, agreement.privacy.dp
    network = list(agreement.model.hidden) or "logistic regression"
    if dp is None:
        return f"{network}, without privacy"
    return (
        f"{network}, {plan.optimizer} at {plan.learning_rate:g}, {plan.local_steps} local steps, sampling "
        f"{dp.sampling_rate:g}, noise {dp.noise_multiplier:g}, statistics {dp.statistics!r}"
    )


def plan_lines(found: PrivacyPlan, table: str) -> list[str]:
    """What to put into the agreement, and as comments what it costs and how that is known."""
    agreement = found.recommended.agreement
    told = [toml_of(agreement)]
    if found.advice:
        told.append(f"# {found.advice}")
    told.append(f"# a whole run costs epsilon {run_epsilon(agreement)} at delta {found.delta:g}, as agreed")
    private, plain = found.recommended.test, found.without.test
    if private is not None and plain is not None:
        told.append(
            f"# predicted: test PR-AUC {private.pr_auc:.3f}, without privacy {plain.pr_auc:.3f} "
            f"({found.loss:.3f} lost); ROC-AUC {private.roc_auc:.3f} and {plain.roc_auc:.3f}"
        )
    told.append(
        f"# found by trying {len(found.tried)} plans on {table}, one seed each; the rows of that table paid for it "
        "outside of any accounting, and other tables differ"
    )
    return told
