"""A round under a rule: what it withstands, who counts how much, when it is abandoned, and that its bytes depend on the
updates alone. The rules' own arithmetic is in test_robust.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hansa_common.features import FittedPreprocessing
from hansa_common.robust_agreement import Robustness
from hansa_common.secure_groups import drawn_groups
from hansa_common.statistics import NUM_ROW_COUNTS, SCALE, merge
from hansa_server import robust
from hansa_server.algorithms import initial_state
from hansa_server.exchange import Exchange
from hansa_server.participants import Merchant, Run
from hansa_server.robust_preprocessing import fitted_preprocessing
from hansa_server.robust_rounds import gathering, robust_step
from hansa_server.rounds import PlanState, Round, run_round
from hansa_server.seals import Unsealed

NUM_PARAMS = 5
ROWS = {"alpha": 60, "beta": 110, "gamma": 70, "delta": 90, "epsilon": 80}
NAMES = tuple(ROWS)
LIAR = "beta"
RULES = {
    rule: {"rule": rule, "num_dishonest": 1}
    for rule in ("median", "trimmed-mean", "mixed-mean", "krum", "multi-krum", "geometric-median", "clipped-mean")
}


def start():
    return np.linspace(-0.2, 0.2, NUM_PARAMS).astype(np.float32)


class Federation:
    """Five shops that run single rounds under a rule."""

    def __init__(self, world, manual_clock, **sections):
        self.world, self.time = world, manual_clock
        self.agreement = world.agreement(**{"roster": list(NAMES), "cohort": {"min_merchants": 2}, **sections})
        self.shops = {name: world.Shop(name, self.agreement, num_train_rows=number) for name, number in ROWS.items()}
        self.merchants = tuple(Merchant(name, i, "b", "d", ROWS[name]) for i, name in enumerate(NAMES))

    def run(self, peers=None, number=1):
        """The step of one round, and how it ended; a peer of None is silent."""
        plan = self.agreement.training.plans[0]
        answering = {**self.shops, **{name: peer or (lambda _: None) for name, peer in (peers or {}).items()}}
        grid = self.world.PeerGrid({i: answering[name] for i, name in enumerate(NAMES)}, self.time)
        run = Run(
            Exchange(grid, self.time.clock, Unsealed()), self.agreement, self.agreement.fingerprint, "r", lambda _: None
        )
        state, finished = run_round(
            run, self.merchants, Round(number, 0, plan, "preprocessing", PlanState(initial_state(start(), plan)))
        )
        return state.server.weights.astype(np.float64) - start(), finished

    def updates(self):
        return [shop.update(shop.seen[-1]) for shop in self.shops.values()]

    def liar(self, update):
        def lie(_, reply):
            return reply.model_copy(update={"update": np.asarray(update(reply.update), np.float32)})

        return self.world.changed(self.shops[LIAR], lie)


@pytest.fixture
def federation(world, manual_clock):
    return lambda **sections: Federation(world, manual_clock, **sections)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("median", robust.median),
        ("trimmed-mean", lambda updates: robust.trimmed_mean(updates, 1)),
        ("mixed-mean", lambda updates: robust.mixed_mean(updates, 1)),
        ("krum", lambda updates: robust.krum(updates, 1)),
        ("multi-krum", lambda updates: robust.multi_krum(updates, 1)),
        ("geometric-median", robust.geometric_median),
        (
            "clipped-mean",
            lambda updates: robust.clipped_mean(
                updates, sorted(np.linalg.norm(np.float64(update)) for update in updates)[2]
            ),
        ),
    ],
)
def test_step_is_what_the_rule_makes_of_the_updates_counted_alike(federation, rule, expected):
    ready = federation(robustness=RULES[rule])
    step, finished = ready.run()
    np.testing.assert_allclose(step, expected(ready.updates()), atol=1e-7)
    assert finished.aggregated
    # Who counts more is the mean's to say: rows differ, and the rule does not see it.
    by_rows = np.average(ready.updates(), axis=0, weights=list(ROWS.values()))
    assert np.abs(step - by_rows).max() > 1e-4


@pytest.mark.parametrize("lie", [lambda u: -50 * u, lambda u: np.full_like(u, 300.0)], ids=["turned", "far away"])
@pytest.mark.parametrize("rule", RULES)
def test_lie_of_any_length_moves_a_rule_no_further_than_the_honest_lie_apart(federation, rule, lie):
    ready = federation(robustness=RULES[rule])
    step, _ = ready.run({LIAR: ready.liar(lie)})
    honest = [update for name, update in zip(NAMES, ready.updates(), strict=True) if name != LIAR]
    apart = max(np.linalg.norm(a - b) for a, b in itertools.combinations(honest, 2))
    longest = max(np.linalg.norm(update) for update in honest)
    moved = np.linalg.norm(step - np.mean(honest, axis=0))
    # Cutting lengths leaves a share of a honest length; the other rules stay among the honest.
    assert moved <= (0.5 * longest if rule == "clipped-mean" else 2 * apart)
    undefended = federation()
    broken, _ = undefended.run({LIAR: undefended.liar(lie)})
    assert np.linalg.norm(broken - np.mean(honest, axis=0)) > 5 * longest


def test_round_tells_whose_update_krum_took(federation):
    ready = federation(robustness=RULES["krum"])
    step, finished = ready.run({LIAR: ready.liar(lambda u: -50 * u)})
    (taken,) = finished.selected
    assert taken != LIAR
    np.testing.assert_allclose(step, ready.updates()[NAMES.index(taken)], atol=1e-7)
    assert finished.to_json()["selected"] == [taken]
    assert f"made of the update of {taken} alone" in finished.line
    assert federation(robustness=RULES["median"]).run()[1].selected == ()


@pytest.mark.parametrize(("rule", "least"), [("median", 3), ("trimmed-mean", 3), ("krum", 5)])
def test_round_with_fewer_updates_than_the_rule_needs_is_abandoned(federation, rule, least):
    silent = list(NAMES[: len(NAMES) - least + 1])
    ready = federation(robustness=RULES[rule])
    step, finished = ready.run(dict.fromkeys(silent))
    assert not finished.aggregated
    assert (step == 0).all()
    assert finished.validation is None
    enough = federation(robustness=RULES[rule])
    assert enough.run(dict.fromkeys(silent[1:]))[1].aggregated


@pytest.mark.parametrize("rule", RULES)
def test_bytes_do_not_depend_on_arrival(federation, world, rule):
    found = set()
    for delays in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        ready = federation(robustness=RULES[rule])
        slow = {
            name: lambda order, shop=ready.shops[name], delay=delay: world.Delivery(shop(order), after=delay)
            for name, delay in zip(NAMES, delays, strict=True)
        }
        found.add(ready.run(slow)[0].tobytes())
    assert len(found) == 1


# Groups


ROSTER = [f"shop {i:02}" for i in range(25)]
GROUPED = {"rule": "median", "num_dishonest": 2, "groups": 5}


def grouped(world, **cohort):
    return world.agreement(roster=ROSTER, robustness=GROUPED, cohort={"size": None, "min_merchants": 3, **cohort})


def test_groups_are_the_cohort_once_each_of_nearly_equal_size_and_others_every_round():
    drawn = [drawn_groups(ROSTER, 5, seed=7, draw=number) for number in range(1, 6)]
    for groups in drawn:
        assert sorted(name for group in groups for name in group) == ROSTER
        assert {len(group) for group in groups} == {5}
    assert len(set(drawn)) == 5
    assert drawn[0] == drawn_groups(ROSTER, 5, seed=7, draw=1)
    assert drawn[0] != drawn_groups(ROSTER, 5, seed=8, draw=1)
    assert sorted(len(group) for group in drawn_groups(ROSTER[:23], 5, 0, 1)) == [4, 4, 5, 5, 5]


def test_company_in_groups_is_no_merchants_choice():
    """Over many rounds everyone meets everyone equally often."""
    met = np.zeros((25, 25))
    for number in range(600):
        for group in drawn_groups(range(25), 5, seed=1, draw=number):
            met[np.ix_(group, group)] += 1
    pairs = met[~np.eye(25, dtype=bool)] / 600
    # 4 of 24 others; five standard errors.
    assert np.abs(pairs - 1 / 6).max() < 5 * np.sqrt(1 / 6 * 5 / 6 / 600)


def gathered_step(agreement, updates, rows, number=1, silent=()):
    gathered = gathering(agreement, ROSTER, number, updates.shape[1])
    for name, update, num_rows in zip(ROSTER, updates, rows, strict=True):
        if name not in silent:
            gathered.add(name, update, num_rows)
    return gathered


def test_step_of_groups_is_the_rule_across_their_sums_by_rows(world):
    random = np.random.default_rng(3)
    updates, rows = random.normal(size=(25, 6)).astype(np.float32), random.integers(10, 500, 25)
    means = []
    for group in drawn_groups(ROSTER, 5, grouped(world).seed, 4):
        places = [ROSTER.index(name) for name in group]
        means.append(np.average(updates[places].astype(np.float64), axis=0, weights=rows[places]))
    decided = gathered_step(grouped(world), updates, rows, number=4).decided()
    np.testing.assert_allclose(decided.step, np.median(means, axis=0), rtol=1e-12)


def test_liars_with_any_count_spoil_their_own_groups_and_no_more(world):
    random = np.random.default_rng(5)
    honest = random.normal(1.0, 0.1, size=(25, 6)).astype(np.float32)
    rows = np.full(25, 100)
    for number in range(1, 20):
        lying, counts = honest.copy(), rows.copy()
        for place in random.choice(25, 2, replace=False):
            lying[place], counts[place] = -1000.0, 2**30
        step = gathered_step(grouped(world), lying, counts, number).decided().step
        assert (np.abs(step - 1.0) < 0.3).all()
    # Three liars in three groups of five are beyond what was agreed on, and it shows.
    three = [drawn_groups(ROSTER, 5, grouped(world).seed, 1)[group][0] for group in range(3)]
    lying = honest.copy()
    lying[[ROSTER.index(name) for name in three]] = -1000.0
    assert (gathered_step(grouped(world), lying, rows).decided().step < -1.0).all()


def test_group_that_falls_below_the_least_cohort_is_left_out_and_too_few_groups_are_no_round(world):
    updates, rows = np.ones((25, 3), np.float32), np.full(25, 10)
    groups = drawn_groups(ROSTER, 5, grouped(world).seed, 1)
    # Of the first group two are left: whoever they are, they are not told about.
    updates[[ROSTER.index(name) for name in groups[0]]] = 50.0
    silent = list(groups[0][:3])
    # Four groups of the five that two dishonest merchants ask for.
    assert not gathered_step(grouped(world), updates, rows, silent=silent).is_enough
    least = world.agreement(
        roster=ROSTER, robustness={**GROUPED, "num_dishonest": 1}, cohort={"size": None, "min_merchants": 3}
    )
    np.testing.assert_array_equal(gathered_step(least, updates, rows, silent=silent).decided().step, np.ones(3))


def test_rule_refuses_to_decide_on_fewer_than_it_needs():
    with pytest.raises(ValueError, match="krum against 1 needs 5 updates, there are 4"):
        robust_step(Robustness(**RULES["krum"]), ["a"] * 4, [np.zeros(2, np.float32)] * 4)


# Preprocessing


def numeric(world, scaling="standard", rule="median"):
    return world.agreement(
        roster=list(NAMES),
        features=[
            {"kind": "numeric", "name": "x", "low": 0, "high": 1, "scaling": scaling, "bins": 8},
            {"kind": "categorical", "name": "c", "vocabulary": ["a", "b"]},
        ],
        robustness=RULES[rule] if rule != "mean" else {},
    )


def sums(count, mean, deviation, entries=(9, 9)):
    squares = mean**2 + deviation**2
    return np.array([count, count // 4, count, *(round(count * m * SCALE) for m in (mean, squares)), *entries])


def test_no_count_however_large_moves_a_scale_beyond_the_honest_ones(world):
    honest = [sums(100, mean, deviation) for mean, deviation in [(0.2, 0.05), (0.25, 0.06), (0.3, 0.04), (0.22, 0.05)]]
    liar = sums(2**30, 1.0, 0.0)
    scale = fitted_preprocessing(numeric(world), [*honest, liar]).fitted[0].scale
    assert 0.2 <= scale.mean <= 0.3
    assert 0.04 - 1e-6 <= scale.deviation <= 0.06
    # As a sum, it is the liar's: all honest rows would be thousands of deviations away.
    undefended = fitted_preprocessing(numeric(world, rule="mean"), [*honest, liar]).fitted[0].scale
    assert undefended.mean > 0.99
    assert undefended.deviation < 0.001


def test_plain_mean_is_fitted_to_the_sum_as_ever(world):
    vectors = [sums(100, 0.2, 0.05), sums(300, 0.4, 0.1)]
    agreement = numeric(world, rule="mean")
    assert fitted_preprocessing(agreement, vectors) == FittedPreprocessing.fit(agreement, merge(vectors))


def test_quantiles_are_medians_that_ascend(world):
    agreement = numeric(world, "quantile")
    random = np.random.default_rng(2)
    vectors = [
        np.concatenate([[80, 20], random.multinomial(80, random.dirichlet(np.ones(8))), [5, 5]]) for _ in range(5)
    ]
    fitted = fitted_preprocessing(agreement, vectors)
    cumulated = [np.cumsum([0, *v[NUM_ROW_COUNTS : NUM_ROW_COUNTS + 8]]) / 80 for v in vectors]
    np.testing.assert_allclose(fitted.fitted[0].shares, np.median(cumulated, axis=0))


def test_entry_that_no_more_hold_than_may_lie_is_nobodys_column(world):
    one_holds, two_hold = (
        [sums(100, 0.5, 0.1, (0, 50 * (i == 2))) for i in range(5)],
        [sums(100, 0.5, 0.1, (9 * (i < 2), 0)) for i in range(5)],
    )
    agreement = numeric(world)
    assert fitted_preprocessing(agreement, one_holds).fitted[1].known == (False, False)
    assert fitted_preprocessing(agreement, two_hold).fitted[1].known == (True, False)
    assert fitted_preprocessing(numeric(world, rule="mean"), one_holds).fitted[1].known == (False, True)


def test_feature_that_no_more_than_twice_the_dishonest_have_is_as_if_unknown(world):
    withheld = np.array([100, 25, 0, 0, 0, 9, 9])
    two = [sums(100, 0.9, 0.01), sums(100, 0.9, 0.01), withheld, withheld, withheld]
    scale = fitted_preprocessing(numeric(world), two).fitted[0].scale
    assert (scale.mean, scale.deviation) == (0.5, 0.5)
    three = [*two[:2], sums(100, 0.8, 0.02), withheld, withheld]
    assert fitted_preprocessing(numeric(world), three).fitted[0].scale.mean == pytest.approx(0.9)
