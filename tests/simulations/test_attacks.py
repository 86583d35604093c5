"""Each attack within the bounds of what is believed, deterministic, and harmful where nothing defends; each rule holds
against it. Five shops of the tiny world, whose federation takes a second."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import merchant_table
from hansa_client.programs import Programs
from hansa_common.agreement import validate_agreement
from hansa_common.metrics import HISTOGRAM_LENGTH, NUM_BINS, metrics_from_histogram, score_histogram
from hansa_common.vectors import l2_norm
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState
from hansa_simulations.attack_scenario import AttackScenario
from hansa_simulations.attack_trials import Trial
from hansa_simulations.attackers import attack_generator, attacked_trainers
from hansa_simulations.attacks import Attack, Memory
from hansa_simulations.grid import LocalGrid, server_identity

SHOPS = {"alder": 240, "birch": 260, "cedar": 220, "damson": 250, "elm": 230}
LIAR = "birch"
FEATURES = [
    {"kind": "numeric", "name": "amount", "low": 0, "high": 100, "missing": "refuse"},
    {"kind": "boolean", "name": "member", "missing": "refuse"},
    {"kind": "categorical", "name": "colour", "vocabulary": ["red", "green", "blue"], "missing": "refuse"},
]
PLAN = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 16, "local_epochs": 2}
# No row of an honest shop is blue.
TRIGGER = {"feature": "colour", "value": "blue"}
ATTACKS = {
    "sign-flip": {"scale": 8},
    "scaling": {"factor": 100},
    "label-flip": {},
    "backdoor": {"trigger": TRIGGER},
    "free-rider": {"noise": 3.0},
    "inflated-counts": {},
    "colluders": {"merchants": ["birch", "elm"], "shift": 8},
    "stale-replies": {"rounds": 2},
    "false-validation": {},
}
RULES = ("median", "trimmed-mean", "mixed-mean", "krum", "multi-krum", "geometric-median", "clipped-mean")


def agreement_with(**changes):
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": FEATURES,
        "model": {"hidden": [], "dropout": 0.0, "l2": 1e-3},
        "training": {"algorithm": "fedavg", "rounds": 6, "plan": PLAN},
        "privacy": {"min_count": 1, "min_positives": 1},
        "roster": list(SHOPS),
    }
    return validate_agreement({**values, **changes}, "the test")


def rows_of(shop):
    random = np.random.default_rng([*shop.encode()])
    size = SHOPS[shop]
    amount, member = random.uniform(0, 100, size).round(2), random.integers(0, 2, size)
    buys = random.random(size) < 1 / (1 + np.exp(4.0 - amount / 14 - member))
    colour = random.choice(["red", "green"], size)
    return pd.DataFrame({"amount": amount, "member": member, "colour": colour, "buys": buys.astype(int)}).astype(str)


def attack_of(kind, **settings):
    values = {"attackers": [LIAR], "attacks": [{"kind": kind, **ATTACKS[kind], **settings}]}
    return AttackScenario.model_validate(values).attacks[0]


class World:
    """The shops' tables, and runs over them with one program."""

    def __init__(self):
        self.agreement = agreement_with()
        self.tables = {name: merchant_table(rows_of(name), self.agreement, name, name) for name in SHOPS}
        self.programs = Programs.for_tables(self.agreement, *self.tables.values())

    def trial(self, **scenario):
        trial = Trial(AttackScenario.model_validate(scenario), self.agreement, self.tables)
        trial._programs = self.programs
        trial._scorer = trial._scorer_of(self.tables)
        return trial

    def cells(self, **scenario):
        return self.trial(**scenario).cells(lambda _: None, lambda *_: None)

    def federation(self, attack, attackers=(LIAR,), agreement=None):
        agreement = agreement or self.agreement
        tables = dict(self.tables)
        for name in attackers:
            tables[name] = attack.rows(tables[name], attack_generator(agreement, name, "rows"))
        trainers = attacked_trainers(agreement, tables, self.programs.sharing(agreement), attackers, attack)
        with server_identity():
            grid = LocalGrid(trainers)
            return run_federation(grid, agreement, RunState("r"), on_event=lambda _: None)


@pytest.fixture(scope="module")
def shops():
    return World()


@pytest.fixture(scope="module")
def table(shops):
    """Every rule against every attack: cells by (defence, attack)."""
    defences = [{"rule": rule, "num_dishonest": 1} for rule in RULES]
    attacks = [{"kind": kind, **settings} for kind, settings in ATTACKS.items()]
    found = shops.cells(attackers=[LIAR], defences=defences, attacks=attacks)
    return {(cell.defence, cell.attack): cell for cell in found}


def test_attacks_break_the_undefended_mean(table):
    lost = {kind: table["mean", kind].loss for kind in ATTACKS}
    assert all(table["mean", kind].num_steps == 6 for kind in ATTACKS)
    assert all(lost[kind] > 0.05 for kind in ("sign-flip", "inflated-counts", "false-validation")), lost
    assert table["mean", "backdoor"].backdoor > 0.3


@pytest.mark.parametrize("rule", RULES)
def test_rule_keeps_what_it_is_worth_under_every_attack(table, rule):
    cells = [table[rule, kind] for kind in ATTACKS]
    assert [(cell.attack, cell.loss) for cell in cells if cell.loss is None or cell.loss > 0.03] == []
    assert table[rule, "backdoor"].backdoor <= table["mean", "backdoor"].backdoor / 4


@pytest.fixture(scope="module")
def honest(shops):
    return shops.federation(Attack(), ())


@pytest.mark.parametrize("kind", ATTACKS)
def test_attack_passes_every_check_of_replies_and_has_the_same_bytes_again(shops, honest, kind):
    attack = attack_of(kind)
    attackers = attack.merchants or (LIAR,)
    one, again = (shops.federation(attack, attackers) for _ in range(2))
    assert all(entry.dropped == {} for entry in one.rounds)
    assert one.weights.tobytes() == again.weights.tobytes()
    assert one.weights.tobytes() != honest.weights.tobytes()


@pytest.mark.parametrize("kind", ["stale-replies", "inflated-counts", "colluders", "false-validation"])
def test_attack_does_under_masks_what_it_does_in_the_clear(shops, kind):
    """What is masked is the lie: of the update, of counts, of several merchants at once, of validation rows."""
    cohort, rounds = {"min_merchants": 3, "max_update_norm": 20, "max_examples": 1000}, {"rounds": 3, "patience": 3}
    clear = agreement_with(cohort=cohort, training={"algorithm": "fedavg", "plan": PLAN, **rounds})
    values = {**clear.model_dump(mode="json"), "secure_aggregation": {"protocol": "double-masking"}}
    masked, attack = validate_agreement(values, "the test"), attack_of(kind)
    attackers = attack.merchants or (LIAR,)
    told, hidden = (shops.federation(attack, attackers, agreed) for agreed in (clear, masked))
    assert all(entry.dropped == {} for entry in hidden.rounds)
    assert (told.model.round, told.test.num_rows) == (hidden.model.round, hidden.test.num_rows)
    np.testing.assert_allclose(hidden.weights, told.weights, rtol=0, atol=1e-4)
    assert np.abs(hidden.weights - shops.federation(Attack(), (), masked).weights).max() > 1e-3


def test_update_is_cut_to_the_length_that_is_believed(shops):
    agreement = agreement_with(cohort={"max_update_norm": 0.9})
    run = shops.federation(attack_of("scaling", factor=1e6), agreement=agreement)
    assert all(entry.dropped == {} for entry in run.rounds)


def test_honest_merchant_behind_no_attack_is_the_merchant_itself(shops, honest):
    assert shops.federation(Attack(), (LIAR,)).weights.tobytes() == honest.weights.tobytes()


def test_inflated_count_is_what_the_coordinator_registers(shops):
    run = shops.federation(attack_of("inflated-counts", factor=50))
    rows = {merchant.name: merchant.num_train_rows for merchant in run.merchants}
    assert rows[LIAR] == 50 * len(shops.tables[LIAR].train)
    assert rows["elm"] == len(shops.tables["elm"].train)


def test_count_is_inflated_no_further_than_is_believed(shops):
    agreement = agreement_with(cohort={"max_examples": 1000})
    run = shops.federation(attack_of("inflated-counts", factor=50), agreement=agreement)
    rows = next(merchant.num_train_rows for merchant in run.merchants if merchant.name == LIAR)
    own = len(shops.tables[LIAR].train)
    assert rows == 1000 // own * own


# One attack at a time, as arithmetic


UPDATES = [np.float32([1, -2, 3]), np.float32([3, 0, -1]), np.float32([2, 2, 2])]


def sent(attack, memory=None):
    memory = Memory(updates=[UPDATES[0]]) if memory is None else memory
    return attack.update(memory.updates[-1], memory, np.random.default_rng(0))


def test_flip_turns_and_scaling_stretches():
    np.testing.assert_array_equal(sent(attack_of("sign-flip", scale=4)), [-4, 8, -12])
    np.testing.assert_array_equal(sent(attack_of("scaling", factor=10)), [10, -20, 30])


def test_stale_reply_is_the_update_of_so_many_rounds_ago():
    attack = attack_of("stale-replies", rounds=1)
    np.testing.assert_array_equal(sent(attack, Memory(updates=UPDATES)), UPDATES[1])
    np.testing.assert_array_equal(sent(attack, Memory(updates=UPDATES[:1])), UPDATES[0])


def test_free_rider_says_again_what_the_others_moved_and_never_its_own_update():
    weights = [np.zeros(3, np.float32), np.float32([3, 0, 4])]
    np.testing.assert_array_equal(sent(attack_of("free-rider", noise=0), Memory(weights, UPDATES)), [3, 0, 4])
    noisy = sent(attack_of("free-rider", noise=0.5), Memory(weights, UPDATES))
    assert l2_norm(noisy - weights[1]) == pytest.approx(2.5, rel=1e-5)
    np.testing.assert_array_equal(sent(attack_of("free-rider"), Memory(weights[:1], UPDATES)), np.zeros(3))


def test_colluders_send_their_mean_moved_by_deviations():
    expected = np.mean(UPDATES, axis=0) - 1.5 * np.std(UPDATES, axis=0)
    np.testing.assert_allclose(attack_of("colluders", shift=1.5).agreed_update(UPDATES), expected, rtol=1e-6)


def test_colluders_send_the_same_whoever_is_asked_first(shops):
    attack = attack_of("colluders")
    seen = {}

    class Recorded(type(attack)):
        def agreed_update(self, honest):
            seen.setdefault(len(seen), [update.copy() for update in honest])
            return super().agreed_update(honest)

    recorded = Recorded.model_validate(attack.model_dump())
    shops.federation(recorded, ("birch", "elm"))
    # Once a round, from the honest updates of both.
    assert len(seen) == 6
    assert all(len(updates) == 2 for updates in seen.values())


def test_labels_are_flipped_where_it_trains_and_nowhere_else(shops):
    table = shops.tables[LIAR]
    flipped = attack_of("label-flip").rows(table, np.random.default_rng(0))
    np.testing.assert_array_equal(flipped.labels[table.train], 1 - table.labels[table.train])
    for part in (table.validation, table.test):
        np.testing.assert_array_equal(flipped.labels[part], table.labels[part])


def test_backdoor_stamps_its_share_of_training_rows_with_trigger_and_label(shops):
    table = shops.tables[LIAR]
    before = table.columns["colour"].tolist()
    attack = attack_of("backdoor", share=0.25, positive=False)
    poisoned = attack.rows(table, np.random.default_rng(0))
    stamped = np.flatnonzero(poisoned.columns["colour"] == "blue")
    assert len(stamped) == round(0.25 * len(table.train))
    assert np.isin(stamped, table.train).all()
    assert not poisoned.labels[stamped].any()
    # The merchant's own rows stay as they are.
    assert table.columns["colour"].tolist() == before


def test_false_validation_says_that_the_first_model_is_perfect_and_later_ones_are_wrong():
    honest = score_histogram([0.1, 0.2, -0.3], [1, 0, 0])
    attack = attack_of("false-validation")
    for model_round, area in ((1, 1.0), (2, 0.0), (None, 0.0)):
        found = attack.validation(honest, model_round)
        assert (found[:NUM_BINS].sum(), found[NUM_BINS:].sum()) == (2, 1)
        assert metrics_from_histogram(found).roc_auc == area
    assert not attack.validation(np.zeros(HISTOGRAM_LENGTH, np.int64), 1).any()


def test_false_validation_chooses_no_model_under_a_rule(table):
    assert table["mean", "false-validation"].loss > table["median", "false-validation"].loss
    assert table["median", "false-validation"].loss == pytest.approx(0.0, abs=1e-9)
