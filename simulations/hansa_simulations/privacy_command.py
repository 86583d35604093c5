"""`hansa privacy`: what an agreement promises, and which plan to agree on for an epsilon.

Errors are raised: the dispatcher tells them. Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa_common.agreement_file import read_agreement
from hansa_common.errors import UsageError
from hansa_simulations.cli import merchant_tables, progress_to_stderr, quieten_tensorflow

if TYPE_CHECKING:
    from hansa_simulations.privacy_plan import PrivacyPlan
    from hansa_simulations.privacy_trials import Tried

privacy = typer.Typer(
    name="privacy",
    help="Choose and check what an agreement promises each person.",
    no_args_is_help=True,
    add_completion=False,
)


@privacy.command()
def statement(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a private agreement promises, or that a run would cost more than that."""
    from hansa_common.privacy_costs import check_affordable
    from hansa_common.privacy_statement import privacy_json

    agreed, _ = read_agreement(agreement)
    check_affordable(agreed)
    told = privacy_json(agreed)
    if told is None:
        raise UsageError(f"{agreement} has no [privacy.dp]; `hansa privacy plan` finds one for an epsilon")
    typer.echo(json.dumps(told) if as_json else "\n".join(f"  - {line}" for line in told["statement"]))


@privacy.command()
def plan(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML); an empty roster takes all silos.")],
    data: Annotated[Path, typer.Argument(help="A public table, or your own, that stands for the merchants' rows.")],
    silo: Annotated[str, typer.Option(help="The column whose values are the merchants, or bands: Amount:0,1,10.")],
    epsilon: Annotated[float, typer.Option(min=0.01, max=100, help="What a whole run may cost each person.")],
    delta: Annotated[float, typer.Option(min=1e-12, max=0.01, help="The chance that it does not hold.")] = 1e-5,
    min_silo_rows: Annotated[int, typer.Option(min=1, help="Merge silos with fewer rows into one.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="End with the plan as JSON; progress to stderr.")] = False,
) -> None:
    """Try models, noise and steps on a table, and recommend what to agree on for an epsilon."""
    quieten_tensorflow()
    with progress_to_stderr(as_json):
        from hansa_client.silos import parse_silo, split_silos
        from hansa_client.tables import read_frame
        from hansa_simulations.privacy_plan import find_plan

        spec = parse_silo(silo)
        agreed, _ = read_agreement(agreement)
        frames = split_silos(read_frame(data), spec, min_silo_rows)
        agreed = agreed.without_trust() if agreed.roster else agreed.with_roster(tuple(frames))
        tables = merchant_tables(agreed, frames, str(data))
        found = find_plan(agreed, tables, epsilon, delta, _tell_tried)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _tell(found, data)


def _tell_tried(tried: Tried) -> None:
    plan, dp = tried.agreement.training.plan, tried.agreement.privacy.dp
    network = list(tried.agreement.model.hidden) or "logistic regression"
    area = "no model" if tried.validation is None else f"validation PR-AUC {tried.validation.pr_auc:.4f}"
    how = (
        "without privacy"
        if dp is None
        else f"noise {dp.noise_multiplier:g}, sampling {dp.sampling_rate:g}, {plan.local_steps} local steps, "
        f"learning rate {plan.learning_rate:g}"
    )
    typer.echo(f"tried {network}, {how}: {area}", err=True)


def _tell(found: PrivacyPlan, data: Path) -> None:
    from hansa_common.privacy_costs import run_epsilon
    from hansa_simulations.privacy_plan import toml_of

    agreement = found.recommended.agreement
    typer.echo(toml_of(agreement))
    if found.advice:
        typer.echo(f"# {found.advice}")
    typer.echo(f"# a whole run costs epsilon {run_epsilon(agreement)} at delta {found.delta:g}, as agreed")
    private, plain = found.recommended.test, found.without.test
    if private is not None and plain is not None:
        typer.echo(
            f"# predicted: test PR-AUC {private.pr_auc:.3f}, without privacy {plain.pr_auc:.3f} "
            f"({found.loss:.3f} lost); ROC-AUC {private.roc_auc:.3f} and {plain.roc_auc:.3f}"
        )
    typer.echo(
        f"# found by trying {len(found.tried)} plans on {data.name}, one seed each; the rows of that table paid for it "
        "outside of any accounting, and other tables differ"
    )
