"""`hansa agree` writes a draft and tells what a person must decide, and tells of an agreement what it means."""

from __future__ import annotations

import json
import tomllib

import pytest

from hansa_common.agreement import parse_agreement
from hansa_common.cli import installed_commands, run


@pytest.fixture
def data_file(tmp_path, table):
    path = tmp_path / "t.csv"
    table().to_csv(path, index=False)
    return path


def agree(*arguments: object) -> int:
    return run(["agree", *map(str, arguments)], installed_commands())


def test_agree_writes_the_draft_and_tells_what_to_decide(data_file, tmp_path, capsys, drafted):
    out = tmp_path / "agreement.toml"
    assert agree(data_file, "--label", "bought", "--silo", "shop", "-o", out) == 0
    assert tomllib.loads(out.read_text()) == tomllib.loads(drafted.toml)
    told = capsys.readouterr().out
    assert "600 rows, 150 of them positive (25.00%): purchase" in told
    for column in ("refunded", "session", "currency"):
        assert column in told


def test_agree_prints_json_for_programs(data_file, tmp_path, capsys):
    out = tmp_path / "agreement.toml"
    assert agree(data_file, "--label", "bought", "--silo", "visits:0,2", "-o", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fingerprint"] == parse_agreement(out.read_text(), "t").fingerprint
    assert told["roster"] == ["visits 0-2", "visits 2+"]
    assert {"column": "currency", "code": "constant", "message": "every row has 'EUR'", "leaves_out": True} in told[
        "findings"
    ]


def test_agree_writes_over_a_file_only_by_force(data_file, tmp_path, capsys):
    out = tmp_path / "agreement.toml"
    out.write_text("mine")
    assert agree(data_file, "--label", "bought", "-o", out) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert agree(data_file, "--label", "bought", "-o", out, "--force") == 0
    assert parse_agreement(out.read_text(), "t").label.column == "bought"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--label", "bougth"], "no column 'bougth'; did you mean 'bought'?"),
        (["--label", "bought", "--silo", "Shop"], "no column 'Shop'; did you mean 'shop'?"),
        (["--label", "bought", "--silo", "visits:2,1"], "the edges must ascend"),
    ],
)
def test_agree_refuses_what_the_table_does_not_have(data_file, tmp_path, capsys, arguments, told):
    out = tmp_path / "agreement.toml"
    assert agree(data_file, *arguments, "-o", out) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


MASKED = """
task = "fraud"
label = {column = "bought"}
features = [{kind = "boolean", name = "member"}]
roster = ["a", "b", "c", "d", "e"]
cohort = {min_merchants = 3, max_update_norm = 10.0, max_examples = 50000}
secure_aggregation = {protocol = "double-masking", colluders = 1}
"""


def test_agree_says_of_an_agreement_who_may_drop_out_and_collude_and_how_sums_are_rounded(tmp_path, capsys):
    path = tmp_path / "agreement.toml"
    path.write_text(MASKED)
    assert agree(path) == 0
    told = capsys.readouterr().out
    for words in (
        "sums over at least 4 of 5 merchants",
        "no more than 1 of them help",
        "4 shares open a secret",
        "up to 1 may drop out",
        "masking moves a mean update by 6e-07",
        parse_agreement(MASKED, "it").fingerprint,
    ):
        assert words in told
    assert agree(path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == parse_agreement(MASKED, "it").fingerprint


def test_agree_on_a_table_asks_for_the_label(data_file, capsys):
    assert agree(data_file) == 2
    assert "--label COLUMN" in capsys.readouterr().err
