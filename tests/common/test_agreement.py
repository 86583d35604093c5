"""The fingerprint: equal agreements have equal ones, however they are written, and no others do."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common import __version__
from hansa_common.agreement import parse_agreement, validate_agreement
from hansa_common.agreement_sections import Algorithm
from hansa_common.errors import AgreementError

GOLDEN = Path(__file__).parents[1] / "golden"
TOML = (GOLDEN / "agreement.toml").read_text()
GOLDEN_FINGERPRINT = "0a90d5c40cd16b1f7a4939ba84241eb951a23af770946312a94c3ac7cf38925f"

# Something else to say for a value, for one or another of the fields that hold its kind of value.
WORDS = (
    "remove", "keep", "stratified", "time", "tanh", "focal", "mixed_bfloat16", "sgd", "momentum", "fedavgm",
    "purchase", "fraud", "standard", "log", "one_hot", "embedding", "refuse", "flag", "iso", "int8", "0" * 64,
    "another", "leave-out",
)  # fmt: skip


def alternatives(value):
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case float():
            return [value / 2 if value else 0.5, value + 1, value * 0.99 + 1e-3]
        case str():
            return [word for word in WORDS if word != value]
        case _:
            return [3, *WORDS]


def agreed(values):
    return validate_agreement(values, "the test")


def agreed_or_none(values):
    try:
        return agreed(values)
    except AgreementError:
        return None


def another_value(values, places, place, value):
    """An agreement that differs in this one value, or None where no other value alone is valid."""
    tried = (agreed_or_none(places.changed(values, place, other)) for other in alternatives(value))
    return next((agreement for agreement in tried if agreement is not None), None)


# A rule needs a number of dishonest merchants, and what is said beside it a rule: test_robust_agreement.py.
ROBUSTNESS = {f"robustness.{key}" for key in ("rule", "num_dishonest", "max_norm", "groups")}
# They need bounds that few agreements have: test_secure_agreement.py.
SECURE_AGGREGATION = {f"secure_aggregation.{key}" for key in ("protocol", "colluders", "threshold", "update_bits")}
# They are for a simulation, and stand beside a bound: test_audit_gate.py.
AUDIT = {f"audit.{key}" for key in ("attack", "max_true_positive_rate", "shadows")}
# What stands alone or not at all: the version, a feature's kind (other kinds have other fields), and values that must
# agree with another one.
FIXED = {
    "one plan": {
        "hansa_common", "compression.sparsity", "training.algorithm", "training.plan.algorithm", "trust",
        "features.0.kind", "features.1.kind", "features.2.kind", "features.3.kind", "features.4.kind",
        "features.1.hash_buckets", "training.plan.local_steps", *ROBUSTNESS, *SECURE_AGGREGATION, *AUDIT, "privacy.dp",
    },
    "auto": {
        "hansa_common", "compression.sparsity", "training.algorithm", "features.0.kind", "features.1.kind",
        "data.split", "data.test_from", "data.validation_from", "training.candidates.0.optimizer", "trust",
        "training.plan.local_steps", "training.candidates.0.local_steps", "training.candidates.1.local_steps",
        *ROBUSTNESS, *SECURE_AGGREGATION, *AUDIT, "privacy.dp",
    },
    "trusted": {
        "hansa_common", "compression.sparsity", "training.algorithm", "training.plan.algorithm", "features.0.kind",
        "data.split", "data.test_from", "data.validation_from", "roster.0", "roster.1", "roster.2",
        "training.plan.local_steps", *ROBUSTNESS, *SECURE_AGGREGATION, *AUDIT, "privacy.dp",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_change_of_any_value_changes_the_fingerprint(bases, places, name):
    base, values = agreed(bases[name]), bases[name]
    fixed, fingerprints = set(), [base.fingerprint]
    for place, value in places.leaves(values):
        other = another_value(values, places, place, value)
        if other is None:
            fixed.add(".".join(map(str, place)))
            continue
        assert other != base
        fingerprints.append(other.fingerprint)
    assert fixed == FIXED[name]
    assert len(set(fingerprints)) == len(fingerprints)


def test_every_algorithm_has_its_fingerprint(bases, places):
    values = places.changed(bases["one plan"], ("training", "plan", "optimizer"), "sgd")
    fingerprints = set()
    for algorithm in get_args(Algorithm):
        plan = places.changed(values, ("training", "plan", "algorithm"), algorithm)
        fingerprints.add(agreed(places.changed(plan, ("training", "algorithm"), algorithm)).fingerprint)
    assert len(fingerprints) == len(get_args(Algorithm)) == 6


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("one plan", ("features",)),
        ("one plan", ("features", 1, "vocabulary")),
        ("one plan", ("roster",)),
        ("auto", ("model", "hidden")),
        ("auto", ("training", "candidates")),
    ],
)
def test_order_and_length_of_any_list_change_the_fingerprint(bases, places, name, place):
    values = bases[name]
    entries = places.held(values, place)
    variants = [entries, entries[::-1], entries[1:] + entries[:1] if len(entries) > 2 else None]
    if place[-1] == "hidden":
        variants += [entries[:-1], [*entries, entries[-1]], []]
    elif place[-1] == "candidates":
        variants += [[*entries, entries[-1]]]
    else:
        variants += [entries[:-1]]
    made = [agreed(places.changed(values, place, variant)) for variant in variants if variant is not None]
    assert len({agreement.fingerprint for agreement in made}) == len(made) >= 3


def shuffled(values, random):
    """The same with every dictionary's keys in another order."""
    if isinstance(values, list):
        return [shuffled(entry, random) for entry in values]
    if not isinstance(values, dict):
        return values
    keys = list(values)
    random.shuffle(keys)
    return {key: shuffled(values[key], random) for key in keys}


@settings(max_examples=20)
@given(st.sampled_from(sorted(FIXED)), st.randoms(use_true_random=False))
def test_key_order_does_not_matter(bases, name, random):
    agreement = agreed(shuffled(bases[name], random))
    assert agreement == agreed(bases[name])
    assert agreement.fingerprint == agreed(bases[name]).fingerprint


@pytest.mark.parametrize(
    ("written", "otherwise"),
    [
        ("low = 0\n", "low = 0.0\n"),
        ("low = 0\n", "low = -0.0\n"),
        ("low = 0\n", "low = -0\n"),
        ("high = 2.5e4", "high = 25_000"),
        ("hash_buckets = 0x400", "hash_buckets = 1024"),
        ("hash_buckets = 0x400", "hash_buckets = 0b100_0000_0000"),
        ("l1 = 0.000001", "l1 = 1e-6"),
        ("1.7e9", "1700000000"),
        ("1_000_003", "1000003"),
        ('"DE"', "'DE'"),
        ('"DE"', '"\\u0044E"'),
        ('"ÅL"', '"\\u00C5L"'),
        ("'a \"quoted\" \\ one'", '"a \\"quoted\\" \\\\ one"'),
        ("plan.local_epochs = 2", "plan = { local_epochs = 2 }"),
        ("plan.local_epochs = 2", "[training.plan]\nlocal_epochs = 2"),
        ("[cohort]\nsize = 3\n", "cohort.size = 3\n"),
        ("\n", "\r\n"),
        ("\n\n", "\n\n# a remark\n\n"),
        ("[model]\n", "[model]\nl2 = 1e-4  # as the task sets it\n"),
        ("[privacy]\n", '[compression]\nformat = "none"\n[privacy]\nmin_count = 5\n'),
    ],
)
def test_spelling_in_toml_does_not_matter(written, otherwise):
    assert TOML.count(written) >= 1
    respelled = TOML.replace(written, otherwise)
    if otherwise == "cohort.size = 3\n":
        # A dotted key stands before the first table.
        respelled = otherwise + TOML.replace(written, "")
    assert parse_agreement(respelled, "respelled") == parse_agreement(TOML, "golden")
    assert parse_agreement(respelled, "respelled").fingerprint == parse_agreement(TOML, "golden").fingerprint


def test_texts_that_only_look_the_same_are_different_agreements():
    composed, decomposed = parse_agreement(TOML, "t"), parse_agreement(TOML.replace("Å", "A\u030a"), "t")
    assert composed != decomposed
    assert composed.fingerprint != decomposed.fingerprint


def test_canonical_form_is_the_golden_bytes():
    """An accidental change of the canonical form makes every agreement that anybody has approved another one."""
    golden = (GOLDEN / "agreement.json").read_bytes()
    canonical = parse_agreement(TOML, "golden").canonical_json()
    # The version is part of every agreement; the golden one is of the first.
    first = canonical.replace(f'"hansa_common":"{__version__}"'.encode(), b'"hansa_common":"0.1.0"')
    assert first == golden
    assert hashlib.sha256(golden).hexdigest() == GOLDEN_FINGERPRINT


def test_golden_bytes_are_what_their_generator_writes():
    generator = runpy.run_path(str(GOLDEN / "agreement.py"))
    assert generator["canonical_json"]() == (GOLDEN / "agreement.json").read_bytes()


def test_fingerprint_is_the_sha256_of_the_canonical_json(bases):
    for values in bases.values():
        agreement = agreed(values)
        assert agreement.fingerprint == hashlib.sha256(agreement.canonical_json()).hexdigest()


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
numbers = st.floats(-1e30, 1e30)
missing = st.sampled_from(["flag", "refuse"])
domains = st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1]).map(sorted)
shares = st.floats(0, 0.47, exclude_min=True)


def kind(name, *, optional=None, **required):
    return st.fixed_dictionaries({"kind": st.just(name), **required}, optional={"missing": missing, **(optional or {})})


features = st.one_of(
    domains.flatmap(
        lambda pair: kind(
            "numeric",
            low=st.just(pair[0]),
            high=st.just(pair[1]),
            optional={"bins": st.integers(8, 4096), "scaling": st.sampled_from(["standard", "log", "quantile"])},
        )
    ),
    kind("categorical", vocabulary=st.lists(texts, min_size=1, max_size=4, unique=True)),
    kind("categorical", hash_buckets=st.integers(1, 65_536), optional={"embedding_dim": st.integers(1, 256)}),
    kind("boolean"),
    kind("timestamp", optional={"unit": st.sampled_from(["iso", "seconds"])}),
)


def named(drawn):
    return [{**feature, "name": f"feature {i}"} for i, feature in enumerate(drawn)]


plans = {
    "learning_rate": st.floats(0, 10, exclude_min=True),
    "momentum": st.floats(0, 1, exclude_max=True),
    "batch_size": st.integers(1, 65_536),
    "server_tau": st.floats(0, 1, exclude_min=True),
}
agreements = st.fixed_dictionaries(
    {
        "task": st.sampled_from(["fraud", "purchase"]),
        "label": st.fixed_dictionaries({"column": st.just("label")}, optional={"positive": texts}),
        "features": st.lists(features, min_size=1, max_size=4).map(named),
    },
    optional={
        "name": texts,
        "seed": st.integers(0, 2**63 - 1),
        "data": st.fixed_dictionaries({}, optional={"test_share": shares, "validation_share": shares}),
        "model": st.fixed_dictionaries(
            {},
            optional={
                "hidden": st.lists(st.integers(1, 8192), max_size=16),
                "dropout": st.floats(0, 0.9),
                "l2": st.floats(0, 10),
                "output_bias": st.floats(-20, 20),
            },
        ),
        "training": st.fixed_dictionaries({}, optional={"plan": st.fixed_dictionaries({}, optional=plans)}),
        "roster": st.lists(st.sampled_from(["alpha", "beta", "gamma (2)"]), unique=True, min_size=2),
    },
)


@settings(max_examples=50)
@given(agreements)
def test_canonical_json_validates_back_to_an_equal_agreement(values):
    agreement = agreed(values)
    again = agreed(json.loads(agreement.canonical_json()))
    assert again == agreement
    assert again.canonical_json() == agreement.canonical_json()


def test_agreement_is_frozen_through_and_through(bases):
    agreement = agreed(bases["one plan"])
    sections = (agreement, agreement.label, agreement.features[0], agreement.model, agreement.training.plan)
    for section in sections:
        for name in type(section).model_fields:
            with pytest.raises(ValueError, match="frozen"):
                setattr(section, name, getattr(section, name))
    assert isinstance(hash(agreement), int)  # so nothing in it can be changed: lists and dictionaries have no hash


def test_another_seed_or_roster_changes_nothing_else(bases):
    agreement = agreed(bases["one plan"])
    assert agreement.with_seed(agreement.seed).with_roster(agreement.roster) == agreement
    assert agreed({**bases["one plan"], "seed": 5}) == agreement.with_seed(5) != agreement
    assert agreed({**bases["one plan"], "roster": ["a", "b", "c"]}) == agreement.with_roster(("a", "b", "c"))


@pytest.mark.parametrize(("change", "place"), [("with_seed", "seed"), ("with_roster", "roster")])
def test_another_seed_or_roster_is_validated(bases, change, place):
    wrong = {"with_seed": 2**63, "with_roster": ("alpha", "a\nb")}[change]
    with pytest.raises(AgreementError, match=place):
        getattr(agreed(bases["one plan"]), change)(wrong)


def test_plans_are_the_candidates_or_the_one_plan(bases):
    one, auto = agreed(bases["one plan"]), agreed(bases["auto"])
    assert one.training.plans == (one.training.plan,)
    assert [plan.algorithm for plan in auto.training.plans] == ["scaffold", "fedadam"]
