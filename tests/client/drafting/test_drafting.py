"""A drafted agreement: it fits its own table, shows less than the table, and says what a person must decide."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import merchant_table, read_frame
from hansa_client.drafting import draft_agreement
from hansa_client.silos import parse_silo, split_silos
from hansa_common.agreement import parse_agreement
from hansa_common.errors import DataError, UsageError
from hansa_common.schema import CategoricalFeature, NumericFeature

NUM_ROWS = 600


def random() -> np.random.Generator:
    return np.random.default_rng(7)


def uncommented(toml: str) -> str:
    """Every left-out feature put in, as the comment says: without the '#' of its lines."""
    return re.sub(r"(?m)^#\[\[features\]\]\n(#.*\n)*", lambda block: re.sub(r"(?m)^#", "", block.group()), toml)


# The draft as a whole


def test_draft_reads_back_as_the_agreement_it_is_and_is_always_the_same(drafted, draft):
    assert parse_agreement(drafted.toml, "t") == drafted.agreement
    assert draft().toml == drafted.toml


def test_draft_fits_the_table_and_every_silo_it_was_drafted_from(drafted, table):
    frame = table()
    quality = merchant_table(frame, drafted.agreement, "all", "t").quality
    assert (quality.num_rows, quality.num_positives) == (NUM_ROWS, NUM_ROWS // 4)
    silos = split_silos(frame, parse_silo("shop"))
    assert drafted.agreement.roster == tuple(silos) == ("east", "north", "south")
    for name, rows in silos.items():
        assert merchant_table(rows, drafted.agreement, name, "t").quality.num_rows == NUM_ROWS // 3


def test_left_out_features_are_valid_once_uncommented(drafted, table):
    whole = parse_agreement(uncommented(drafted.toml), "t")
    assert {feature.name for feature in whole.features} == set(table().columns) - {"bought"}
    assert set(drafted.left_out) == {f.name for f in whole.features} - {f.name for f in drafted.agreement.features}


@pytest.mark.parametrize(
    ("column", "declared"),
    [
        ("amount", {"kind": "numeric", "low": 0.0, "scaling": "log", "missing": "refuse"}),
        ("balance", {"kind": "numeric", "scaling": "standard", "missing": "refuse"}),
        ("visits", {"kind": "numeric", "low": 0.0, "scaling": "standard", "missing": "refuse"}),
        ("browser", {"kind": "categorical", "vocabulary": [*"12345678"], "encoding": "one_hot", "missing": "refuse"}),
        ("member", {"kind": "boolean", "missing": "refuse"}),
        ("country", {"kind": "categorical", "vocabulary": ["DE", "NO", "SE"], "encoding": "one_hot"}),
        ("city", {"kind": "categorical", "vocabulary": [f"city {i}" for i in range(40)], "encoding": "embedding"}),
        ("basket", {"kind": "categorical", "hash_buckets": 64, "encoding": "embedding"}),
        ("ordered", {"kind": "timestamp", "unit": "iso"}),
        ("sent_time", {"kind": "timestamp", "unit": "seconds"}),
        ("coupon", {"kind": "categorical", "vocabulary": ["x1"], "missing": "flag"}),
    ],
)
def test_column_is_declared_as_what_it_is(drafted, column, declared):
    (feature,) = (feature for feature in drafted.agreement.features if feature.name == column)
    assert feature.model_dump(mode="json").items() >= declared.items()


@pytest.mark.parametrize(
    ("column", "code", "leaves_out"),
    [
        ("shop", "silo", True),
        ("session", "identifier", True),
        ("customer_id", "identifier", True),
        ("number", "identifier", True),
        ("currency", "constant", True),
        ("nothing", "empty", True),
        ("country_code", "duplicate", True),
        ("amount_again", "duplicate", True),
        ("refunded", "leakage", False),
        ("visits", "few-values", False),
        ("browser", "codes", False),
        ("coupon", "mostly-missing", False),
        ("basket", "hashed", False),
    ],
)
def test_what_a_person_must_decide_is_said_above_the_feature(drafted, column, code, leaves_out):
    (finding,) = (finding for finding in drafted.findings if finding.column == column)
    assert (finding.code, finding.leaves_out) == (code, leaves_out)
    mark, start = ("LEFT OUT", "#") if leaves_out else ("CHECK", "")
    comment, feature = drafted.toml.split(f"# {mark} ({code}): {column!r}: ")[1].split("\n", 1)
    assert finding.message.startswith(comment)
    assert f'{start}[[features]]\n{start}name = "{column}"' in feature.split("\n\n")[0]


def test_nothing_is_said_of_columns_without_doubt(drafted):
    doubted = {finding.column for finding in drafted.findings}
    assert not doubted & {"amount", "balance", "member", "country", "city", "ordered", "sent_time"}


def test_text_of_a_few_rows_is_in_no_vocabulary(table, draft):
    frame = table()
    frame.loc[[0, 1, 2, 3], "country"] = "secret"
    frame.loc[[4, 5, 6, 7, 8], "country"] = "FI"
    (country,) = (feature for feature in draft(frame).agreement.features if feature.name == "country")
    assert country.vocabulary == ("DE", "FI", "NO", "SE")
    assert "secret" not in draft(frame).toml


def test_exact_duplicates_are_counted(table, draft):
    frame = pd.concat([table(), table().head(3)], ignore_index=True)
    (finding,) = (finding for finding in draft(frame).findings if finding.code == "duplicate-rows")
    assert finding.message.startswith("3 rows")


@pytest.mark.parametrize(
    ("rare_share", "given_task", "expected"),
    [(0.04, None, "fraud"), (0.06, None, "purchase"), (0.06, "fraud", "fraud")],
)
def test_task_follows_the_rate_of_positives_unless_given(rare_share, given_task, expected, table, draft):
    num_positives = round(rare_share * NUM_ROWS)
    frame = table().assign(bought=["1"] * num_positives + ["0"] * (NUM_ROWS - num_positives))
    assert draft(frame, task=given_task).agreement.task == expected


def test_one_silo_makes_a_valid_agreement_and_none_an_open_roster(draft):
    assert draft(silo=parse_silo("currency")).agreement.roster == ("EUR",)
    assert draft(silo=None).agreement.roster == ()


def test_silo_column_stays_a_feature_where_it_differs_within_a_silo(draft):
    banded = draft(silo=parse_silo("visits:0,2"))
    assert "visits" in {feature.name for feature in banded.agreement.features}
    assert banded.agreement.roster == ("visits 0-2", "visits 2+")
    merged = draft(silo=parse_silo("browser"), min_silo_rows=76)
    assert "browser" in {feature.name for feature in merged.agreement.features}
    assert merged.agreement.roster[-1] == "other"


# The label


@pytest.mark.parametrize(
    ("values", "positive"),
    [(("0", "1"), "1"), (("FALSE", "TRUE"), "TRUE"), (("no", "Yes"), "Yes"), (("ok", "bad"), "bad"), (("1", "2"), "2")],
)
def test_true_value_or_else_the_rarer_is_positive(values, positive, table, draft):
    label = ["bought" if flag == "1" else "not" for flag in table()["bought"]]
    frame = table().assign(bought=[values[flag == "bought"] for flag in label])
    drafted = draft(frame)
    assert drafted.agreement.label.positive == positive
    assert drafted.num_positives == NUM_ROWS // 4
    assert ("positive" in {finding.code for finding in drafted.findings}) == (positive in {"bad", "2"})


def test_label_of_three_values_needs_to_be_told_the_positive_one(table, draft):
    frame = table().assign(bought=[("won", "lost", "open")[i % 3] for i in range(NUM_ROWS)])
    with pytest.raises(UsageError, match=r"has 3 values .*--positive"):
        draft(frame)
    with pytest.raises(UsageError, match="no row has 'bought' = 'win'; did you mean 'won'"):
        draft(frame, positive="win")
    assert draft(frame, positive="won").num_positives == NUM_ROWS // 3


def test_label_that_cannot_be_learned_is_refused(table, draft):
    with pytest.raises(DataError, match="one class only"):
        draft(table().assign(bought="1"))
    with pytest.raises(DataError, match="row 0, column 'bought': the label is missing, in 600 rows"):
        draft(table().assign(bought="NA"))
    with pytest.raises(DataError, match="no rows"):
        draft(table().head(0))
    with pytest.raises(DataError, match="no column is left"):
        draft(table()[["bought", "currency"]], silo=None)
    with pytest.raises(UsageError, match="is the label"):
        draft(silo=parse_silo("bought"))


# Rare positives


def test_draft_says_that_too_few_positives_tell_nothing(table, draft):
    frame = table().assign(bought=["1"] * 6 + ["0"] * (NUM_ROWS - 6))
    codes = {finding.code for finding in draft(frame).findings}
    assert "few-rows-of-a-class" in codes
    assert "leakage" not in codes


# Hostile names


@pytest.mark.parametrize(
    "name",
    [
        'quo"te',
        "back\\slash",
        "#[[features]]",
        "Ünïcode 東京",
        "tab\tline\nname = 'evil'",
        "del\x7f",
        "",
        "x" * 121,
        "'''",
    ],
)
def test_name_of_a_column_cannot_change_what_the_draft_says(name, table, draft):
    lawful = 0 < len(name) <= 120 and "\t" not in name
    frame = table()[["bought", "amount", "member"]].assign(**{name: [str(i % 30 / 7) for i in range(NUM_ROWS)]})
    names = [feature.name for feature in draft(frame, silo=None).agreement.features]
    assert names == ["amount", "member", *([name] if lawful else [])]
    as_label = frame.assign(**{name: frame["bought"]}).drop(columns="bought")
    if lawful:
        agreement = draft(as_label, silo=None, label=name, name=name).agreement
        assert (agreement.label.column, agreement.name) == (name, name)


# The public sets


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "label", "silo", "min_rows", "task", "expected"),
    [
        (
            "online_shoppers_intention.csv.gz",
            "Revenue",
            "TrafficType",
            300,
            "purchase",
            {
                (None, "duplicate-rows"),
                ("Informational", "few-values"),
                ("SpecialDay", "few-values"),
                *((column, "codes") for column in ("OperatingSystems", "Browser", "Region", "TrafficType")),
                ("TrafficType", "silo"),
            },
        ),
        (
            "in-vehicle-coupon-recommendation.csv.gz",
            "Y",
            "couponType",
            1,
            "purchase",
            {
                (None, "duplicate-rows"),
                ("temperature", "codes"),
                ("couponType", "silo"),
                ("cartype", "mostly-missing"),
                ("toCoupon_GEQ5min", "constant"),
                ("direction_opp", "duplicate"),
            },
        ),
        ("creditcard.csv.gz", "Class", "Amount:0,1,10,30,100", 1, "fraud", {(None, "duplicate-rows")}),
    ],
)
def test_draft_of_a_public_set_fits_every_silo_and_finds_what_is_known(
    public_data, name, label, silo, min_rows, task, expected
):
    frame = read_frame(public_data / name)
    drafted = draft_agreement(frame, label=label, source=name, silo=parse_silo(silo), min_silo_rows=min_rows)
    assert drafted.agreement.task == task
    assert {(finding.column, finding.code) for finding in drafted.findings} == expected
    silos = split_silos(frame, parse_silo(silo), min_rows)
    tables = [merchant_table(rows, drafted.agreement, shop, name) for shop, rows in silos.items()]
    assert drafted.agreement.roster == tuple(silos)
    assert sum(len(merchant.labels) for merchant in tables) == len(frame)
    unseen = {column for merchant in tables for column in merchant.quality.unseen_categories}
    kinds = {feature.name: type(feature) for feature in drafted.agreement.features}
    assert {kinds[column] for column in unseen} <= {CategoricalFeature}
    num_numbers = sum(kind is NumericFeature for kind in kinds.values())
    clipped = sum(sum(merchant.quality.clipped.values()) for merchant in tables)
    assert clipped <= 0.002 * len(frame) * num_numbers
