"""A run that was broken off anywhere ends as one that was not: same orders, same replies, same bytes."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress

import pytest
from flwr.app import Context, RecordDict

from hansa_common.errors import RunFailedError, RunInterruptedError, UsageError
from hansa_common.messages import IntroduceOrder, Introduction, RangesOrder, decode
from hansa_server import checkpoint, run_folder
from hansa_server.app import app
from hansa_server.run_state import RunState

PLANS = {
    name: {"algorithm": name, "rounds": 2, "patience": 2, "plan": {"optimizer": "sgd", "learning_rate": 0.5}}
    for name in ("fedavg", "scaffold", "fedavgm", "fedadam", "fedyogi")
}
AUTO = {
    "algorithm": "auto", "rounds": 5, "patience": 5, "trial_rounds": 1, "plan": {},
    "candidates": [{"algorithm": "scaffold", "learning_rate": 0.5}, {"algorithm": "fedadam", "learning_rate": 0.5}],
}  # fmt: skip
PRUNED = {
    "training": {**PLANS["scaffold"], "rounds": 1},
    "model": {"hidden": [4]},
    "compression": {"format": "int8", "sparsity": 0.5, "pruning_rounds": 1},
}
CASES = {
    **{name: {"training": training} for name, training in PLANS.items()},
    "auto": {"training": AUTO},
    "cohorts of two": {"training": {**PLANS["fedavg"], "rounds": 4}, "cohort": {"size": 2}},
    "pruned": PRUNED,
    "a rule against a liar": {
        "training": {**PLANS["fedadam"], "patience": 1}, "robustness": {"rule": "median", "num_dishonest": 1},
    },
}  # fmt: skip


class Killed(BaseException):
    """The process ends here."""


class World:
    """Shops that outlive the coordinator, and a folder; each `run` is a process of the coordinator's."""

    def __init__(self, world, manual_clock, folder, agreement):
        self.world, self.time, self.folder, self.agreement = world, manual_clock, folder, agreement
        self.shops = {name: world.Shop(name, agreement, num_train_rows=400) for name in agreement.roster}
        self.orders = defaultdict(list)
        self.num_starts = 0
        run_folder.create(folder, agreement)
        checkpoint.prepare(folder)
        # The same name for every run that is compared.
        checkpoint.save(folder, agreement, RunState("run-1"))

    def run(self, killed_at=None, peers=None):
        """Run the ServerApp; the order of that number, from 0 on, kills it when it is sent."""
        self.num_starts += 1
        names = {**self.shops, **(peers or {})}
        # A node is another one each time that a SuperLink is restarted.
        nodes = {100 * self.num_starts + i: peer for i, peer in enumerate(names.values()) if peer is not None}
        grid, push, asked = self.world.PeerGrid(nodes, self.time), None, []
        push = grid._push

        def push_until_killed(message):
            order = decode(message.content["hansa"]["message"])
            if not isinstance(order, IntroduceOrder):
                if len(asked) == killed_at:
                    raise Killed
                asked.append(order)
                self.orders[order.sequence, order.recipient].append(message.content["hansa"]["message"])
            return push(message)

        grid._push = push_until_killed
        run_config = {"run-folder": str(self.folder)}
        app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config))
        return len(asked)

    def outcome(self):
        """All that the run left, without how long it took."""
        files = {path.name: path.read_bytes() for path in sorted((self.folder / "model").iterdir())}
        told = run_folder.read_outcome(self.folder)
        rounds = [json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()]
        for entry in (*told["rounds"], *rounds):
            entry.pop("seconds")
        return files, told, rounds


def ignorant(peer, error):
    """The same merchant, who errs at what is asked of small models: how these are made is not tried here."""
    return lambda order: error if isinstance(decode(order), RangesOrder) else peer(order)


@pytest.fixture
def new_world(world, manual_clock, tmp_path, monkeypatch):
    # Processes die here, and no power is cut.
    monkeypatch.setattr("os.fsync", lambda _: None)

    def new(name="run", **sections):
        made = World(world, manual_clock, tmp_path / name, world.agreement(**sections))
        made.shops = {shop: ignorant(peer, world.Error(code=2)) for shop, peer in made.shops.items()}
        return made

    return new


@pytest.mark.parametrize(("case", "first", "step"), [("scaffold", 0, 1), *((case, 1, 3) for case in CASES)])
def test_run_killed_at_any_order_ends_in_the_same_bytes(new_world, case, first, step):
    """Once at every order, then at one of every exchange, when another merchant has answered already."""
    plain = new_world("plain", **CASES[case])
    num_orders, expected = plain.run(), plain.outcome()
    assert num_orders > 10
    for place in range(first, num_orders, step):
        broken = new_world(f"killed at {place}", **CASES[case])
        with pytest.raises(Killed):
            broken.run(killed_at=place)
        broken.run()
        assert broken.outcome() == expected, place
        # What was asked again was asked in the very same bytes, which is what merchants have a stored reply for.
        assert {key: set(orders) for key, orders in broken.orders.items()} == {
            key: set(orders) for key, orders in plain.orders.items()
        }
        assert not (broken.folder / "checkpoint").exists()


@pytest.mark.parametrize("case", ["auto", "pruned"])
def test_run_killed_in_each_of_its_exchanges_ends_in_the_same_bytes(new_world, case):
    plain, broken = new_world("plain", **CASES[case]), new_world("broken", **CASES[case])
    plain.run()
    places = [-1, 0]
    # The closing exchanges leave no state: there a run gets no further by being killed.
    while places[-1] > places[-2]:
        with suppress(Killed):
            # When the second exchange of each process has begun.
            broken.run(killed_at=4)
            break
        places.append(checkpoint.load(broken.folder, broken.agreement).sequence)
    else:
        broken.run()
    assert len(places) > 5
    assert broken.outcome() == plain.outcome()


def test_at_most_the_exchange_in_flight_is_lost(new_world):
    run = new_world(**CASES["auto"])
    for sequence in (1, 2, 3, 4):
        with pytest.raises(Killed):
            run.run(killed_at=4)
        assert checkpoint.load(run.folder, run.agreement).sequence == sequence


def test_lines_of_rounds_go_on_without_a_double_though_the_last_was_written_before_the_kill(new_world, monkeypatch):
    run, save = new_world(**CASES["fedavg"]), checkpoint.save

    def killed_between(folder, agreement, state):
        if state.rounds:
            raise Killed
        save(folder, agreement, state)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", killed_between)
        with pytest.raises(Killed):
            run.run()
    assert len((run.folder / "rounds.jsonl").read_text().splitlines()) == 1
    with (run.folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "cut sho')
    run.run()
    _, told, rounds = run.outcome()
    assert [entry["round"] for entry in rounds] == [1, 2]
    assert rounds == told["rounds"]


def test_progress_goes_on_at_its_round(new_world, capsys):
    run = new_world(**CASES["auto"])
    with pytest.raises(Killed):
        run.run(killed_at=10)
    capsys.readouterr()
    run.run()
    out, _ = capsys.readouterr()
    assert "run run-1 goes on after round 1; waiting for 3 merchants" in out
    assert "\nround 1:" not in out
    assert "\nround 2:" in out


# Who is back


def killed_in_round_1(new_world, **sections):
    run = new_world(**{**CASES["fedavg"], **sections})
    with pytest.raises(Killed):
        run.run(killed_at=4)
    return run


def test_merchant_that_is_not_back_is_left_out_and_stays_in_the_cohort(new_world):
    run = killed_in_round_1(new_world, cohort={"wait_seconds": 0.2})
    run.run(peers={"beta": None})
    _, told, _ = run.outcome()
    assert [entry["cohort"] for entry in told["rounds"]] == [["alpha", "beta", "gamma"]] * 2
    assert [entry["dropped"] for entry in told["rounds"]] == [{"beta": "unreachable"}] * 2


def test_too_few_who_are_back_interrupt_the_run_until_more_are(new_world):
    plain = new_world("plain", **{**CASES["fedavg"], "cohort": {"wait_seconds": 0.2}})
    plain.run()
    run = killed_in_round_1(new_world, cohort={"wait_seconds": 0.2})
    with pytest.raises(RunInterruptedError, match=r"1 merchants came .* missing: beta, gamma"):
        run.run(peers={"beta": None, "gamma": None})
    with pytest.raises(RunFailedError, match=rf"missing: beta, gamma; `hansa server resume {run.folder}` goes on"):
        run_folder.read_outcome(run.folder)
    assert run_folder.open_interrupted(run.folder).fingerprint == run.agreement.fingerprint
    run.run()
    assert run.outcome() == plain.outcome()
    assert not (run.folder / "interruption.txt").exists()


def on_another_device(shop):
    """The shop on a machine that computes otherwise."""

    def answer(order, header):
        if isinstance(order, IntroduceOrder):
            return Introduction(**header, hansa_version="0", backend="numpy", device="abacus")
        return type(shop).answer(shop, order, header)

    shop.answer = answer
    return shop


def test_merchant_that_computes_otherwise_than_before_is_not_back(new_world, world, capsys):
    run = killed_in_round_1(new_world, cohort={"wait_seconds": 0.2})
    run.run(peers={"beta": on_another_device(world.Shop("beta", run.agreement, num_train_rows=400))})
    _, told, _ = run.outcome()
    assert told["rounds"][0]["dropped"] == {"beta": "unreachable"}
    assert "'beta' is not taken: other-device" in capsys.readouterr().out


def test_merchant_that_is_back_with_other_rows_is_left_out(new_world, world):
    run = killed_in_round_1(new_world)
    run.run(peers={"beta": world.Shop("beta", run.agreement, num_train_rows=390)})
    _, told, _ = run.outcome()
    assert told["rounds"][0]["dropped"] == {"beta": "num-examples"}


def test_newcomer_has_no_part_in_a_run_that_goes_on(new_world, world, capsys):
    run = new_world(**CASES["fedavg"], roster=[])
    shops = {name: world.Shop(name, run.agreement, num_train_rows=400) for name in ("alpha", "beta", "delta")}
    run.shops = {name: shops[name] for name in ("alpha", "beta")}
    with pytest.raises(Killed):
        run.run(killed_at=4)
    run.run(peers={"delta": shops["delta"]})
    _, told, _ = run.outcome()
    assert list(told["merchants"]) == ["alpha", "beta"]
    assert "'delta' is not taken: unknown-name" in capsys.readouterr().out


# Which folders


def test_run_that_failed_for_a_reason_is_not_resumed(new_world, world):
    run = new_world(**CASES["fedavg"])
    silent = {
        name: world.changed(world.Shop(name, run.agreement), lambda _, __: world.Error(code=2)) for name in run.shops
    }
    with pytest.raises(RunFailedError):
        run.run(peers=silent)
    with pytest.raises(UsageError, match=r"has failed: none of 2 rounds.*\); mend that, and train into another folder"):
        run_folder.open_interrupted(run.folder)
    # It makes way for another run, as before.
    run_folder.create(run.folder, run.agreement)
    assert [path.name for path in run.folder.iterdir()] == ["agreement.json"]


def test_finished_run_is_not_resumed(new_world):
    run = new_world(**CASES["fedavg"])
    run.run()
    with pytest.raises(UsageError, match="finished run"):
        run_folder.open_interrupted(run.folder)


def test_folder_without_checkpoints_is_not_resumed(world, tmp_path):
    with pytest.raises(UsageError, match="is not readable"):
        run_folder.open_interrupted(tmp_path)
    run_folder.create(tmp_path / "run", world.agreement())
    with pytest.raises(UsageError, match="holds no checkpoint"):
        run_folder.open_interrupted(tmp_path / "run")


def test_run_that_can_go_on_does_not_make_way_for_another(new_world):
    run = killed_in_round_1(new_world)
    with pytest.raises(UsageError, match=rf"`hansa server resume {run.folder}`"):
        run_folder.create(run.folder, run.agreement)
    run_folder.create(run.folder, run.agreement, overwrite=True)
    assert [path.name for path in run.folder.iterdir()] == ["agreement.json"]
