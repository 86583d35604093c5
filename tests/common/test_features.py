"""Rows become the inputs that scikit-learn and numpy would make of all rows together, and always finite ones."""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import DataError, MessageError
from hansa_common.features import MIN_DEVIATION, FittedPreprocessing
from hansa_common.statistics import measure, merge, statistics_length

KEY = bytes(range(32))
ONE_OF_EACH = (
    {"kind": "numeric", "name": "amount", "low": -50, "high": 100},
    {"kind": "numeric", "name": "price", "low": 1, "high": 1e6, "scaling": "log"},
    {"kind": "numeric", "name": "age", "low": 0, "high": 120, "scaling": "quantile", "bins": 64},
    {"kind": "categorical", "name": "channel", "vocabulary": ["web", "shop", "phone"]},
    {"kind": "categorical", "name": "brand", "vocabulary": ["a", "b"], "encoding": "embedding", "embedding_dim": 4},
    {"kind": "categorical", "name": "article", "hash_buckets": 64, "encoding": "embedding"},
    {"kind": "boolean", "name": "gift"},
    {"kind": "timestamp", "name": "when", "unit": "seconds"},
)
# amount, price, age with flags; five ids of channel; gift and flag; four of when and flag.
AMOUNT, PRICE, AGE, CHANNEL, GIFT, WHEN = 0, 2, 4, slice(6, 11), 11, slice(13, 17)
NUM_DENSE = 18
FLAGS = (1, 3, 5, 12, 17)


def agreement_of(*features, min_count=1) -> Agreement:
    values = {"task": "fraud", "label": {"column": "label"}, "features": features, "privacy": {"min_count": min_count}}
    return validate_agreement(values, "the test")


def made_up(num_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed)
    columns = {
        "amount": values.normal(20, 30, num_rows),
        "price": np.exp(values.normal(6, 2, num_rows)),
        "age": values.gamma(6, 6, num_rows),
        "channel": values.choice(["web", "shop", "fax"], num_rows).astype(object),
        "brand": values.choice(["a", "b", "c"], num_rows).astype(object),
        "article": values.choice([f"article {i}" for i in range(30)], num_rows).astype(object),
        "gift": values.integers(0, 2, num_rows).astype(float),
        "when": values.uniform(0, 2e9, num_rows),
    }
    for column in columns.values():
        column[values.random(num_rows) < 0.1] = None if column.dtype == object else np.nan
    return columns


def fitted_to(agreement: Agreement, *merchants: dict[str, np.ndarray]) -> FittedPreprocessing:
    labels = [np.zeros(len(next(iter(columns.values()))), np.uint8) for columns in merchants]
    vectors = [measure(agreement, c, of_rows) for c, of_rows in zip(merchants, labels, strict=True)]
    return FittedPreprocessing.fit(agreement, merge(vectors))


AGREEMENT = agreement_of(*ONE_OF_EACH)
MERCHANTS = [made_up(700, 1), made_up(300, 2), made_up(50, 3)]
POOLED = {name: np.concatenate([columns[name] for columns in MERCHANTS]) for name in MERCHANTS[0]}
FITTED = fitted_to(AGREEMENT, *MERCHANTS)
INPUTS = FITTED.transform(POOLED, KEY)


def present(name):
    """Where a numeric column has a value, and its values."""
    is_present = ~np.isnan(POOLED[name])
    return is_present, POOLED[name][is_present]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_merchants_together_fit_what_the_pooled_rows_fit():
    assert fitted_to(AGREEMENT, POOLED).to_json() == FITTED.to_json()


def test_standard_scaling_is_scikit_learns_on_the_pooled_rows_within_a_hundred_thousandth():
    is_present, values = present("amount")
    expected = StandardScaler().fit_transform(np.clip(values, -50, 100)[:, None])[:, 0]
    np.testing.assert_allclose(INPUTS.dense[is_present, AMOUNT], expected, atol=1e-5)


def test_log_scaling_is_scikit_learns_on_the_logarithms_within_a_hundred_thousandth():
    is_present, values = present("price")
    expected = StandardScaler().fit_transform(np.log(np.clip(values, 1, 1e6))[:, None])[:, 0]
    np.testing.assert_allclose(INPUTS.dense[is_present, PRICE], expected, atol=1e-5)


def test_quantile_scaling_is_the_share_of_pooled_values_below_within_one_bin():
    is_present, values = present("age")
    share = INPUTS.dense[is_present, AGE] * math.sqrt(1 / 12) + 0.5
    below = np.searchsorted(np.sort(values), values) / len(values)
    largest_bin = np.histogram(values, 64, (0, 120))[0].max() / len(values)
    assert np.abs(share - below).max() <= largest_bin + 1e-6
    ends = np.linspace(0, 120, 65)
    at_ends = FITTED.transform({**{n: c[:65] for n, c in POOLED.items()}, "age": ends}, KEY).dense[:, AGE]
    expected = np.searchsorted(np.sort(values), ends) / len(values)
    np.testing.assert_allclose(at_ends * math.sqrt(1 / 12) + 0.5, expected, atol=1e-6)


def test_scaled_pooled_numbers_have_mean_zero_and_variance_one():
    for name, place, tolerance in (("amount", AMOUNT, 1e-5), ("price", PRICE, 1e-5), ("age", AGE, 0.02)):
        scaled = INPUTS.dense[present(name)[0], place].astype(np.float64)
        assert abs(scaled.mean()) < tolerance, name
        assert abs(scaled.std() - 1) < tolerance, name


@pytest.mark.parametrize("scaling", ["standard", "log"])
def test_constant_column_becomes_zero_and_another_value_stays_within_the_least_deviation(scaling):
    feature = {"kind": "numeric", "name": "x", "low": 0, "high": 10, "scaling": scaling, "missing": "refuse"}
    agreement = agreement_of(feature)
    fitted = fitted_to(agreement, {"x": np.full(50, 7.0)})
    dense = fitted.transform({"x": np.array([7.0, 0.0, 10.0])}, None).dense[:, 0]
    # A mean is known to half a unit of the sums; a deviation below the least one is taken as it.
    assert abs(dense[0]) < 0.01
    assert np.abs(dense).max() <= 1 / MIN_DEVIATION


def test_column_in_a_corner_of_its_domain_does_not_explode():
    """Squares of positions below 4e-5 are rounded to zero: the sums tell no variance."""
    agreement = agreement_of({"kind": "numeric", "name": "x", "low": 0, "high": 1e7, "missing": "refuse"})
    columns = {"x": np.random.default_rng(0).uniform(0, 200, 500)}
    assert np.abs(fitted_to(agreement, columns).transform(columns, None).dense).max() < 1


def test_nothing_known_leaves_the_middle_of_the_domain_at_zero():
    fitted = FittedPreprocessing.fit(AGREEMENT, np.zeros(statistics_length(AGREEMENT), np.int64))
    columns = {name: column[:1] for name, column in POOLED.items()}
    dense = fitted.transform({**columns, "amount": np.array([25.0]), "age": np.array([60.0])}, KEY).dense
    np.testing.assert_allclose(dense[0, [AMOUNT, AGE]], 0, atol=1e-6)


# --- missing values, booleans, moments --------------------------------------------------------------------------------


def test_missing_number_boolean_and_moment_become_zero_and_are_flagged():
    of_flag = {"amount": (AMOUNT, 1), "price": (PRICE, 3), "age": (AGE, 5), "gift": (GIFT, 12), "when": (WHEN, 17)}
    for name, (places, flag) in of_flag.items():
        is_missing = np.isnan(POOLED[name])
        assert is_missing.any()
        np.testing.assert_array_equal(INPUTS.dense[:, flag], is_missing)
        assert not INPUTS.dense[is_missing, places].any()


def test_feature_that_refuses_missing_values_has_no_flag():
    refusing = agreement_of(*({**feature, "missing": "refuse"} for feature in ONE_OF_EACH))
    dense = fitted_to(refusing, POOLED).transform(POOLED, KEY).dense
    np.testing.assert_array_equal(dense, np.delete(INPUTS.dense, FLAGS, axis=1))


def test_booleans_are_one_and_minus_one():
    is_present, values = present("gift")
    np.testing.assert_array_equal(INPUTS.dense[is_present, GIFT], np.where(values == 1, 1, -1))


@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), min_size=1, max_size=20))  # noqa: DTZ001
def test_moments_are_the_hour_and_the_weekday_on_their_circles(moments):
    start = datetime(1970, 1, 1)  # noqa: DTZ001 - a wall clock, as moments are read
    seconds = np.array([(moment - start) / timedelta(seconds=1) for moment in moments])
    agreement = agreement_of({"kind": "timestamp", "name": "when"})
    dense = fitted_to(agreement, {"when": seconds}).transform({"when": seconds}, None).dense
    midnight = [datetime(m.year, m.month, m.day) for m in moments]  # noqa: DTZ001
    hour = [2 * math.pi * ((m - zero) / timedelta(days=1)) for m, zero in zip(moments, midnight, strict=True)]
    weekday = [2 * math.pi * moment.weekday() / 7 for moment in moments]
    expected = np.stack([np.sin(hour), np.cos(hour), np.sin(weekday), np.cos(weekday), np.zeros(len(moments))], axis=1)
    np.testing.assert_allclose(dense, expected, atol=1e-5)


def test_midnight_of_a_monday_is_where_both_circles_begin():
    monday = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
    agreement = agreement_of({"kind": "timestamp", "name": "when", "missing": "refuse"})
    columns = {"when": np.array([monday])}
    np.testing.assert_array_equal(fitted_to(agreement, columns).transform(columns, None).dense, [[0, 1, 0, 1]])


# --- categories -------------------------------------------------------------------------------------------------------

BRAND = {"kind": "categorical", "name": "brand", "vocabulary": ["a", "b", "c"], "encoding": "embedding"}


def texts(*values):
    return {"brand": np.array(values, object)}


def ids_of(fitted, *values, key=None):
    return fitted.transform(texts(*values), key).ids[:, 0].tolist()


def test_missing_is_id_zero_unseen_is_one_and_entries_follow_in_order():
    fitted = fitted_to(agreement_of(BRAND), texts("a", "b", "c"))
    assert ids_of(fitted, None, "z", "a", "b", "c", "") == [0, 1, 2, 3, 4, 1]


def test_entry_that_every_merchant_holds_below_the_floor_is_out_of_vocabulary():
    agreement = agreement_of(BRAND, min_count=3)
    # b: two at each of two merchants, four in all; c: three at one of them.
    fitted = fitted_to(agreement, texts(*"aaabb"), texts(*"aaabbccc"))
    assert ids_of(fitted, "a", "b", "c") == [2, 1, 4]


def test_one_hot_is_a_column_for_each_id_and_an_embedding_its_id():
    order = {None: 0, "fax": 1, "web": 2, "shop": 3}
    expected = np.eye(5)[[order[value] for value in POOLED["channel"].tolist()]]
    np.testing.assert_array_equal(INPUTS.dense[:, CHANNEL], expected)
    order = {None: 0, "c": 1, "a": 2, "b": 3}
    np.testing.assert_array_equal(INPUTS.ids[:, 0], [order[value] for value in POOLED["brand"].tolist()])


def test_bucket_is_keyed_blake2b_of_name_and_text():
    is_missing = POOLED["article"] == None  # noqa: E711 - element by element
    assert not INPUTS.ids[is_missing, 1].any()
    for text, found in zip(POOLED["article"][~is_missing], INPUTS.ids[~is_missing, 1], strict=True):
        digest = hashlib.blake2b(b"article\0" + text.encode(), digest_size=8, key=KEY).digest()
        assert found == 2 + int.from_bytes(digest, "big") % 64


def test_buckets_differ_by_key_and_by_feature():
    hashed = [{"kind": "categorical", "name": name, "hash_buckets": 65_536, "encoding": "embedding"} for name in "xy"]
    agreement = agreement_of(*hashed)
    articles = np.array([f"article {i}" for i in range(200)], object)
    columns = {"x": articles, "y": articles}
    fitted = fitted_to(agreement, columns)
    first, second = fitted.transform(columns, KEY).ids, fitted.transform(columns, b"another key").ids
    # By chance one text in 65,536 falls in the same bucket twice.
    assert (first[:, 0] == first[:, 1]).sum() <= 2
    assert (first == second).sum() <= 4


def test_hashed_category_without_the_merchants_key_is_refused_with_a_way_out():
    with pytest.raises(DataError, match=r"'article'.*--hash-key"):
        FITTED.transform(POOLED, None)


def test_column_that_is_not_there_is_named():
    with pytest.raises(DataError, match="'gift'"):
        FITTED.transform({name: column for name, column in POOLED.items() if name != "gift"}, KEY)


# --- whatever the rows ------------------------------------------------------------------------------------------------

number = st.one_of(st.just(np.nan), st.floats(allow_nan=False, allow_infinity=False))
category = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["web", "a"]))
FITS = (FITTED, FittedPreprocessing.fit(AGREEMENT, np.zeros(statistics_length(AGREEMENT), np.int64)))


@given(
    st.lists(st.tuples(*[number] * 3, *[category] * 3, st.sampled_from([0.0, 1.0, np.nan]), number), min_size=1),
    st.sampled_from(FITS),
)
def test_inputs_of_any_finite_row_are_finite_and_of_the_agreed_shape(drawn, fitted):
    columns = {
        feature["name"]: np.array(field, object if feature["kind"] == "categorical" else float)
        for feature, field in zip(ONE_OF_EACH, zip(*drawn, strict=True), strict=True)
    }
    inputs = fitted.transform(columns, KEY)
    assert np.isfinite(inputs.dense).all()
    assert np.abs(inputs.dense).max() <= 1 / MIN_DEVIATION
    assert (inputs.dense.dtype, inputs.dense.shape) == (np.float32, (len(drawn), NUM_DENSE))
    assert (inputs.ids.dtype, inputs.ids.shape) == (np.int32, (len(drawn), 2))
    assert (inputs.ids >= 0).all()
    assert (inputs.ids < [4, 66]).all()


def test_a_row_becomes_the_same_bytes_whatever_stands_beside_it():
    rows = np.random.default_rng(5).permutation(len(INPUTS))[:100]
    again = FITTED.transform({name: column[rows] for name, column in POOLED.items()}, KEY)
    taken = INPUTS.take(rows)
    assert again.dense.tobytes() == taken.dense.tobytes()
    assert again.ids.tobytes() == taken.ids.tobytes()


# --- as a message -----------------------------------------------------------------------------------------------------


def test_what_was_fitted_comes_back_from_its_canonical_json():
    text = FITTED.to_json()
    back = FittedPreprocessing.from_json(text)
    assert back == FITTED
    assert back.to_json() == text
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    spread = json.dumps(json.loads(text), indent=4)
    assert FittedPreprocessing.from_json(spread).to_json() == text
    inputs = back.transform(POOLED, KEY)
    assert inputs.dense.tobytes() == INPUTS.dense.tobytes()


def test_zero_with_a_sign_is_written_without():
    text = FITTED.to_json().replace('"shares":[0.0,', '"shares":[-0.0,')
    assert text != FITTED.to_json()
    assert FittedPreprocessing.from_json(text).to_json() == FITTED.to_json()


def test_texts_of_rows_are_not_in_it():
    assert "article 7" not in FITTED.to_json()
    assert "fax" not in FITTED.to_json()


def tampered(*place, new):
    values = json.loads(FITTED.to_json())
    target = values
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = new
    return json.dumps(values)


SHARES = list(FITTED.fitted[2].shares)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '"\ud800"',
        "[" * 100_000,
        FITTED.to_json()[:-1],
        FITTED.to_json() + " {}",
        tampered("fitted", 0, "scale", "mean", new=1.5),
        tampered("fitted", 0, "scale", "mean", new=1e999),
        tampered("fitted", 0, "scale", "deviation", new=0.0),
        tampered("fitted", 0, "scale", "deviation", new=MIN_DEVIATION / 2),
        tampered("fitted", 0, "scale", "deviation", new=float("nan")),
        tampered("fitted", 0, "scale", new=None),
        tampered("fitted", 0, "shares", new=[0.0, 1.0]),
        tampered("fitted", 2, "scale", new={"mean": 0.5, "deviation": 0.5}),
        tampered("fitted", 2, "shares", new=SHARES[:-1]),
        tampered("fitted", 2, "shares", new=SHARES[::-1]),
        tampered("fitted", 2, "shares", new=[0.0] * 5000),
        tampered("fitted", 3, "known", new=[True]),
        tampered("fitted", 3, "known", new=[True] * 70_000),
        tampered("fitted", 6, "known", new=[True]),
        tampered("fitted", new=[]),
        tampered("features", 0, "low", new=100),
        tampered("features", 3, "vocabulary", new=["web"]),
        tampered("features", 0, "kind", new="audio"),
        tampered("features", new=[]),
        tampered("x" * 100_000, new=1),
    ],
)
def test_json_that_was_tampered_with_or_contradicts_itself_is_refused_in_few_words(text):
    with pytest.raises(MessageError, match="preprocessing") as told:
        FittedPreprocessing.from_json(text)
    assert len(str(told.value)) < 400


@given(st.integers(0, len(FITTED.to_json()) - 1), st.characters())
def test_any_changed_character_is_refused_or_still_preprocesses(place, character):
    text = FITTED.to_json()
    try:
        fitted = FittedPreprocessing.from_json(text[:place] + character + text[place + 1 :])
    except MessageError:
        return
    names = [feature.name for feature in fitted.features]
    columns = {name: column[:5] for name, column in zip(names, POOLED.values(), strict=True)}
    assert np.isfinite(fitted.transform(columns, KEY).dense).all()


def test_preprocessing_cannot_draw_on_the_merchants_terminal_or_forge_a_log_line():
    drawing = tampered("features", 0, "kind", new="x\n\x1b[2JWARNING all is well \u202e")
    with pytest.raises(MessageError, match="WARNING all is well") as told:
        FittedPreprocessing.from_json(drawing)
    assert str(told.value).isprintable()


@pytest.mark.parametrize(
    ("start", "entry", "end"),
    [
        ('{"features":[', "{}", '],"fitted":[]}'),
        ('{"features":[', '{"kind":"boolean","name":"a","b":1}', '],"fitted":[]}'),
        ('{"features":[],"fitted":[', "0", "]}"),
        ('{"features":[],"fitted":[', '{"shares":[2,2,2,2]}', "]}"),
    ],
)
def test_preprocessing_full_of_wrong_entries_does_not_fill_the_memory(start, entry, end):
    text = start + ",".join([entry] * (200_000 // len(entry))) + end
    tracemalloc.start()
    try:
        with pytest.raises(MessageError, match="preprocessing"):
            FittedPreprocessing.from_json(text)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The text as Python's objects takes up to 24 times its bytes; with every problem told it is 42 to 533 times.
    assert peak_bytes < 30 * len(text)
