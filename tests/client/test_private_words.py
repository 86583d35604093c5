"""A private agreement in words: the promise is told, and refused where a run would break it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from hansa_client.agree_command import agree
from hansa_client.agreement_words import plain_words
from hansa_common.agreement import parse_agreement
from hansa_common.errors import AgreementError
from hansa_common.privacy_statement import statement

AGREEMENT = """
task = "purchase"
label = {column = "buys"}
features = [{kind = "numeric", name = "amount", low = 0, high = 100}]
training = {algorithm = "fedavg", rounds = 5, plan = {local_steps = 7}}
[privacy.dp]
epsilon = EPSILON
noise_multiplier = 2.0
sampling_rate = 0.1
entity_column = "card"
max_rows_per_entity = 3
"""


def test_words_tell_the_promise_and_claim_no_floor_and_no_epoch() -> None:
    agreement = parse_agreement(AGREEMENT.replace("EPSILON", "8"), "the test")
    told = plain_words(agreement)
    assert set(statement(agreement)) <= set(told)
    words = "\n".join(told)
    for said in ("and whose a row is: 'card'", "at most 3 are used", "that coins choose", "with noise, your update"):
        assert said in words
    for denied in ("in the clear", "no count below", "batches of"):
        assert denied not in words


def test_agreement_whose_run_would_break_its_promise_is_not_told_but_refused(tmp_path) -> None:
    path = tmp_path / "agreement.toml"
    path.write_text(AGREEMENT.replace("EPSILON", "0.5"))
    outcome = CliRunner().invoke(agree, [str(path)])
    assert isinstance(outcome.exception, AgreementError)
    with pytest.raises(AgreementError, match="set noise_multiplier = "):
        raise outcome.exception
