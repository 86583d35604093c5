"""What is no agreement: unknown keys, values out of bounds and contradictions, each told with its place and values."""

from __future__ import annotations

import json

import pytest

from hansa_common.agreement import Agreement, parse_agreement, validate_agreement
from hansa_common.errors import AgreementError

VALUES = {
    "task": "fraud",
    "label": {"column": "fraud"},
    "features": [
        {"kind": "numeric", "name": "amount", "low": 0, "high": 10},
        {"kind": "boolean", "name": "gift"},
    ],
}
SIX_THOUSAND_DIGITS = 10**6000


def refusal(values):
    with pytest.raises(AgreementError) as told:
        validate_agreement(values, "shop.toml")
    lines = str(told.value).splitlines()
    assert "shop.toml" in lines[0]
    # Whatever it was given, what is told of it can be read.
    assert all(len(line) < 500 for line in lines)
    return str(told.value)


def dictionaries(values, place=()):
    if isinstance(values, dict):
        yield place, values
    for key, entry in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(entry, dict | list):
            yield from dictionaries(entry, (*place, key))


@pytest.mark.parametrize("name", ["one plan", "auto"])
def test_unknown_key_at_every_level_is_refused_with_the_nearest_right_one(bases, places, name):
    for place, section in dictionaries(bases[name]):
        for key in section:
            message = refusal(places.changed(bases[name], (*place, f"{key}s"), section[key]))
            assert f"unknown key {key + 's'!r}; did you mean {key!r}?" in message
            # A feature's place has its kind in it.
            assert all(str(part) in message for part in place)


def test_unknown_key_like_no_other_is_refused_with_all_that_are_allowed(places):
    message = refusal(places.changed(VALUES, ("label", "zzz"), 1))
    assert "label: unknown key 'zzz'; allowed: column, positive" in message
    # A key is text that is shown, not a template that is filled.
    assert "unknown key '{problem}'" in refusal({**VALUES, "{problem}": 1})


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


UNBOUNDED = [
    float("nan"), float("inf"), float("-inf"), 1.7e308, -1.7e308, 1e31, -1e31, 10**400, -(10**400),
    SIX_THOUSAND_DIGITS, "many", [1], {"value": 1},
]  # fmt: skip


@pytest.mark.parametrize("name", ["one plan", "auto"])
def test_every_number_has_bounds(bases, places, name):
    numbers = [place for place, value in places.leaves(bases[name]) if is_number(value)]
    assert len(numbers) > 25
    for place in numbers:
        for value in UNBOUNDED:
            assert str(place[-1]) in refusal(places.changed(bases[name], place, value))


@pytest.mark.parametrize("name", ["one plan", "auto", "trusted"])
def test_every_text_is_bounded_and_none_is_empty(bases, places, name):
    texts = [place for place, value in places.leaves(bases[name]) if isinstance(value, str)]
    assert len(texts) > 10
    for place in texts:
        for value in ("", "x" * 5000, 5, ["x"], "\ud800"):
            refusal(places.changed(bases[name], place, value))


def sections_of(schema):
    yield from ((name, section) for name, section in schema["$defs"].items() if "properties" in section)
    yield "Agreement", schema


def entries_of(field):
    """The JSON schemas of what a list or a table holds, of a table's keys too."""
    if field["type"] == "array":
        return [field["items"]]
    return [{"type": "string", "pattern": key} for key in field["patternProperties"]] + [
        *field["patternProperties"].values()
    ]


def has_bounds(field):
    """Whether a JSON schema lets in only finitely much."""
    if "anyOf" in field or "oneOf" in field:
        return all(has_bounds(choice) for choice in field.get("anyOf", field.get("oneOf")))
    if field.keys() & {"$ref", "enum", "const"} or field.get("type") in {"boolean", "null"}:
        return True
    match field.get("type"):
        case "number" | "integer":
            low, high = ({word, f"exclusive{word.capitalize()}"} for word in ("minimum", "maximum"))
            return bool(field.keys() & low and field.keys() & high)
        case "string":
            return "maxLength" in field or field.get("pattern", "+").endswith("}$")
        case "array" | "object" as kind:
            ends = "maxItems" if kind == "array" else "maxProperties"
            return ends in field and all(map(has_bounds, entries_of(field)))
    return False


def test_every_field_of_every_section_is_declared_with_bounds():
    """What the other tests find by trying, read off the declarations: a new field cannot be forgotten."""
    fields = {
        f"{section}.{name}": field
        for section, declared in sections_of(Agreement.model_json_schema())
        for name, field in declared["properties"].items()
    }
    assert len(fields) > 60
    assert [name for name, field in fields.items() if not has_bounds(field)] == []


AUTO = {"algorithm": "auto", "rounds": 9, "trial_rounds": 5, "candidates": [{}, {}]}
CONTRADICTIONS = {
    "shares": ({"data": {"test_share": 0.5, "validation_share": 0.45}}, ["test_share 0.5", "validation_share 0.45"]),
    "time split without a column": ({"data": {"split": "time"}}, ["split = 'time'", "time_column"]),
    "test_from alone": ({"data": {"test_from": 5}}, ["both test_from and validation_from"]),
    "validation_from alone": ({"data": {"validation_from": 5}}, ["both test_from and validation_from"]),
    "test before validation": (
        {"data": {"test_from": 5, "validation_from": 6}},
        ["validation_from 6.0", "before test_from 5.0"],
    ),
    "no time between": ({"data": {"test_from": 5, "validation_from": 5}}, ["validation_from 5.0", "test_from 5.0"]),
    "scaffold with momentum": (
        {"training": {"algorithm": "scaffold", "plan": {"optimizer": "momentum"}}},
        ["'scaffold'", "'momentum'", "set optimizer = 'sgd'"],
    ),
    "scaffold with the task's optimizer": (
        {"training": {"algorithm": "scaffold"}},
        ["'scaffold'", "'adam'", "set optimizer = 'sgd'"],
    ),
    "scaffold among candidates": (
        {"training": {**AUTO, "candidates": [{}, {"algorithm": "scaffold", "optimizer": "adam"}]}},
        ["training.candidates.1", "'scaffold'", "'adam'"],
    ),
    "two algorithms": (
        {"training": {"algorithm": "fedavg", "plan": {"algorithm": "fedadam"}}},
        ["plan.algorithm 'fedadam'", "algorithm 'fedavg'"],
    ),
    "steps beside epochs": (
        {"training": {"plan": {"local_epochs": 2, "local_steps": 40}}},
        ["training.plan", "local_steps 40", "local_epochs 2", "leave one of them out"],
    ),
    "auto of one": ({"training": {**AUTO, "candidates": [{}]}}, ["'auto'", "at least two", "there are 1"]),
    "trials beyond the rounds": ({"training": AUTO}, ["2 candidates x 5 trial_rounds exceed 9 rounds"]),
    "candidates without auto": (
        {"training": {"algorithm": "fedprox", "candidates": [{}, {}]}},
        ["'auto'", "not 'fedprox'"],
    ),
    "feature twice": ({"features": [*VALUES["features"], VALUES["features"][1]]}, ["'gift'", "twice"]),
    "label as a feature": ({"label": {"column": "gift"}}, ["the label 'gift' is also a feature"]),
    "merchant twice": ({"roster": ["alpha", "beta", "alpha"]}, ["'alpha' twice"]),
    "roster too short": (
        {"roster": ["alpha"], "cohort": {"min_merchants": 2}},
        ["cohort.min_merchants 2", "roster's 1 merchants"],
    ),
    "cohort too small": ({"cohort": {"size": 2, "min_merchants": 3}}, ["cohort.size 2", "min_merchants 3"]),
    "empty domain": (
        {"features": [{"kind": "numeric", "name": "amount", "low": 3, "high": 3}]},
        ["'amount'", "low 3.0", "high 3.0"],
    ),
    "two domains": (
        {"features": [{"kind": "categorical", "name": "country", "vocabulary": ["a"], "hash_buckets": 8}]},
        ["'country'", "1 entries", "8 hash_buckets"],
    ),
    "no domain": (
        {"features": [{"kind": "categorical", "name": "country"}]},
        ["'country'", "0 entries", "0 hash_buckets"],
    ),
    "entry twice": (
        {"features": [{"kind": "categorical", "name": "country", "vocabulary": ["a", "b", "a"]}]},
        ["'country'", "'a' twice"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", CONTRADICTIONS)
def test_contradiction_is_refused_with_the_values_that_contradict(how):
    changes, told = CONTRADICTIONS[how]
    assert validate_agreement(VALUES, "without the contradiction")
    message = refusal({**VALUES, **changes})
    assert [part for part in told if part not in message] == []


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("task", ["fraud", "purchase"])
def test_scaffold_takes_no_other_optimizer_than_sgd(task, optimizer):
    training = {"algorithm": "scaffold", "plan": {"optimizer": optimizer}}
    assert repr(optimizer) in refusal({**VALUES, "task": task, "training": training})
    training["plan"]["optimizer"] = "sgd"
    assert validate_agreement({**VALUES, "task": task, "training": training}, "t").training.plan.optimizer == "sgd"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": "churn"}, ["task:", "'fraud' or 'purchase'", "'churn'"]),
        ({"model": {"activation": "swish"}}, ["model.activation", "'relu', 'tanh' or 'gelu'", "'swish'"]),
        ({"training": {"rounds": 0}}, ["training.rounds", "greater than or equal to 1", "got 0"]),
        ({"model": {"hidden": [8, 0]}}, ["model.hidden.1", "got 0"]),
        ({"roster": ["alpha", "a\nb"]}, ["roster.1", r"a\nb"]),
        ({"features": []}, ["features", "at least 1"]),
        ({"features": [{"kind": "numric", "name": "n"}]}, ["features.0", "'numric'", "'numeric'"]),
        ({"features": [{"name": "n"}]}, ["features.0", "kind"]),
        ({"training": 3}, ["training", "got 3"]),
        ({"training": {"plan": 3}}, ["training.plan", "got 3"]),
    ],
)
def test_wrong_value_is_refused_with_its_place_what_is_allowed_and_what_was_given(changes, told):
    message = refusal({**VALUES, **changes})
    assert [part for part in told if part not in message] == []


def test_every_wrong_thing_has_its_line_and_no_other_line_is_told():
    message = refusal({**VALUES, "seed": -1, "features": [{"kind": "boolean"}], "model": {"l2": 11}, "extra": {}})
    assert message.splitlines()[1:] == ["  agreement: " + message.splitlines()[1].split(": ", 1)[1]]
    message = refusal({**VALUES, "seed": -1, "features": [{"kind": "boolean"}], "model": {"l2": 11}})
    assert [line.split(": ")[0].strip() for line in message.splitlines()[1:]] == [
        "seed",
        "features.0.boolean.name",
        "model.l2",
    ]


@pytest.mark.parametrize("key", ["task", "label", "features"])
def test_missing_part_is_named(key):
    message = refusal({name: value for name, value in VALUES.items() if name != key})
    assert f"{key}: Field required" in message


@pytest.mark.parametrize("version", ["0.0.9", "0.1.0.dev1", "", "9" * 1000, 1, None, ["0.1.0"]])
def test_other_version_is_refused_whatever_else_it_says(version):
    """A later version may have keys that this one does not know: the version is what is wrong with it."""
    message = refusal({**VALUES, "hansa_common": version, "a_key_of_later": 1})
    assert "was made for hansa_common" in message
    assert "install the agreed version" in message
    assert "a_key_of_later" not in message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("task = ", id="no value"),
        pytest.param("task: fraud", id="yaml"),
        pytest.param("[label\n", id="open table"),
        pytest.param("a = 1\na = 2", id="key twice"),
        pytest.param("seed = " + "1" * 5000, id="digits"),
        pytest.param("a = " + "[" * 5000, id="nesting"),
        pytest.param("d = 2026-02-30", id="no such day"),
        pytest.param("\0", id="zero byte"),
    ],
)
def test_text_that_is_not_toml_is_refused_with_the_file(text):
    with pytest.raises(AgreementError, match=r"shop\.toml is not TOML: "):
        parse_agreement(text, "shop.toml")


@pytest.mark.parametrize("values", [[], None, 3, "fraud", [["task", "fraud"]]])
def test_json_that_is_no_object_is_refused(values):
    assert "dictionary" in refusal(json.loads(json.dumps(values)))


def test_merchant_names_hold_nothing_that_a_path_or_a_terminal_would_obey():
    for name in ("../up", "a/b", "a\\b", ".hidden", "-rf", "a\nb", "a\n", "\x1b[2J", "a\0", "", "é", "a" * 65, " a"):
        assert "roster.0" in refusal({**VALUES, "roster": [name, "beta"]})
