"""A federation whose every message is signed ends in the same bytes as one in which none is."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.policy import Policy
from hansa_client.seals import Sealed as MerchantSeals
from hansa_common.keys import public_key_of
from hansa_common.sealing import open_seal
from hansa_common.trust import Trust
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState
from hansa_server.seals import Sealed, Unsealed
from hansa_simulations.grid import server_identity

SIGNING = bytes(range(32))


def key_of(name):
    return name.encode().ljust(32, b"-")


def model_of(grid, agreement, seals):
    with server_identity():
        return run_federation(grid, agreement, RunState("run"), on_event=lambda _: None, seals=seals).weights


def test_signed_federation_ends_in_the_bytes_of_the_unsigned(shops, tiny_programs):
    training = {"algorithm": "scaffold", "rounds": 3, "patience": 3, "plan": shops.plan}
    plain = shops.scenario(training=training)
    keys = {name: public_key_of(key_of(name)) for name in plain.agreement.roster}
    trust = Trust(coordinator=public_key_of(SIGNING), merchants=keys)
    scenario = replace(plain, agreement=plain.agreement.with_trust(trust))
    programs = tiny_programs.sharing(plain.agreement)
    merchants = {
        name: GuardedTrainer(
            worker,
            Boundary(Policy(scenario.agreement, name), seals=MerchantSeals(trust.coordinator, key_of(name))),
        )
        for name, worker in shops.workers(scenario, programs).items()
    }
    signed, unsigned = shops.recording_grid(merchants), shops.recording_grid(shops.trainers(plain, programs))
    model = model_of(signed, scenario.agreement, Sealed(trust, SIGNING, count(1).__next__))
    assert model.tobytes() == model_of(unsigned, plain.agreement, Unsealed()).tobytes()
    assert len(signed.orders) == len(unsigned.orders) == len(signed.replies)
    for order in signed.orders:
        open_seal(order.content["hansa"]["message"], trust.coordinator, "order")
