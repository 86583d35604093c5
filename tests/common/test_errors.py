"""Errors: one root, one party to blame each, and codes that say no more than a code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

import hansa_common
from hansa_common import errors
from hansa_common.messages import Refusal

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
PARTIES = (errors.UsageError, errors.MerchantError, errors.CoordinatorError, errors.TransportError)


@pytest.mark.parametrize("error", ALL)
def test_every_error_has_the_one_root_and_one_party(error):
    assert issubclass(error, errors.HansaError)
    if error is not errors.HansaError:
        assert sum(issubclass(error, party) for party in PARTIES) == 1


def test_no_two_errors_share_a_code():
    codes = [error.code for error in ALL]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("error", ALL)
def test_only_what_the_command_line_says_exits_with_2(error):
    assert error.exit_code == (2 if issubclass(error, errors.UsageError) else 1)


def test_codes_that_a_refusal_may_carry_are_codes_of_errors():
    carried = set(get_args(Refusal.model_fields["code"].annotation))
    # Not an error: the trainer is at work.
    assert carried - {"busy"} <= {error.code for error in ALL}


def test_what_a_merchant_can_mend_or_refuse_has_a_code_that_travels():
    carried = set(get_args(Refusal.model_fields["code"].annotation))
    told = {errors.DataError, errors.PolicyError, errors.AgreementMismatchError, errors.DeadlineError}
    assert {error.code for error in told} <= carried


def test_reply_error_holds_its_reason_beside_its_message():
    error = errors.ReplyError("too-long", "an update of 3 numbers, the model has 2")
    assert (error.reason, str(error)) == ("too-long", "an update of 3 numbers, the model has 2")


def exits(source):
    """Where a module ends the process itself."""
    for node in ast.walk(ast.parse(source)):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name in {"SystemExit", "exit", "_exit"}:
            yield name


def test_no_module_of_the_vocabulary_but_cli_exits():
    modules = sorted(Path(hansa_common.__file__).parent.glob("*.py"))
    assert len(modules) > 10
    assert {module.name for module in modules if list(exits(module.read_text()))} <= {"cli.py"}
