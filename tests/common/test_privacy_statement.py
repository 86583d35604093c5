"""The promise in words holds the numbers of the agreement, and what NIST SP 800-226 asks of such a claim."""

from __future__ import annotations

from hansa_common.agreement import validate_agreement
from hansa_common.privacy_costs import run_epsilon
from hansa_common.privacy_statement import privacy_json, statement

DP = {"epsilon": 8, "delta": 1e-6, "noise_multiplier": 2.0, "sampling_rate": 0.1}


def agreement_with(dp):
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [{"kind": "numeric", "name": "amount", "low": 0, "high": 100}],
        "training": {"algorithm": "fedavg", "rounds": 5, "plan": {"local_steps": 7}},
        "privacy": {} if dp is None else {"dp": dp},
    }
    return validate_agreement(values, "the test")


def test_statement_tells_unit_epsilon_delta_neighbours_trust_and_accounting() -> None:
    agreement = agreement_with(DP)
    told = " ".join(statement(agreement))
    for word in (
        f"epsilon {run_epsilon(agreement)}",
        "delta 1e-06",
        "one row",
        "neighbouring",
        "trust",
        "dp-accounting",
    ):
        assert word in told


def test_statement_names_the_customers_column_so_that_no_terminal_obeys_it() -> None:
    told = statement(
        agreement_with({**DP, "entity_column": "card\N{RIGHT-TO-LEFT OVERRIDE}x", "max_rows_per_entity": 3})
    )
    assert any("at most 3 are used" in line for line in told)
    assert all(line.isprintable() for line in told)


def test_epsilon_that_is_told_is_rounded_up_never_down() -> None:
    for noise in (1.3, 1.7, 2.9, 6.1):
        agreement = agreement_with({**DP, "noise_multiplier": noise, "epsilon": 100})
        told = float(statement(agreement)[0].split("epsilon ")[1].split(" ")[0])
        assert told >= run_epsilon(agreement)


def test_plain_values_hold_both_accountants_and_the_words() -> None:
    told = privacy_json(agreement_with(DP))
    assert told["epsilon"] <= told["epsilon_by_rdp"]
    assert told["epsilon"] <= told["promised_epsilon"] == 8
    assert told["unit"] == "row"
    assert told["statement"] == statement(agreement_with(DP))


def test_without_dp_nothing_is_promised() -> None:
    assert statement(agreement_with(None)) == []
    assert privacy_json(agreement_with(None)) is None
