"""The finished bundle to the merchants of its run: one order to each who is there, and a record of who has it.

It is a run of Flower's of its own, after the bundle was signed; and the same run again, whenever one is asked for,
brings the bundle to merchants who were away.

word in deliveries.json   the merchant
delivered                 has verified the bundle and keeps it; nothing unsays that
absent                    was not connected
not-asked                 has no word in the file: no delivery of this bundle has ended
any other                 did not answer as asked: a code of exchange.py, replies.py or a merchant's refusal
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from flwr.serverapp import Grid

from hansa_common import durable_files
from hansa_common.agreement import Agreement
from hansa_common.bundle import MANIFEST_NAME
from hansa_common.errors import ReplyError
from hansa_common.messages import Delivered, DeliverOrder
from hansa_common.parcel import pack
from hansa_common.record_types import Reply
from hansa_server import run_folder
from hansa_server.exchange import Clock, Exchange
from hansa_server.introduction import Awaited, introduce_those_present
from hansa_server.participants import Merchant, Run
from hansa_server.run_events import DeliveryFinished, DeliveryStarted, Event
from hansa_server.seals import seals_for

DELIVERED: Final = "delivered"
ABSENT: Final = "absent"
NOT_ASKED: Final = "not-asked"
# A node needs a few seconds to come back after its restart; who is away for longer gets the bundle another time.
WAIT_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Consignment:
    """A run's signed bundle, and how far it has come: `words` holds one word for each merchant, in roster order."""

    agreement: Agreement
    bundle_id: str
    files: Mapping[str, bytes]
    words: Mapping[str, str]

    @classmethod
    def of_run(cls, folder: Path) -> Consignment:
        """Read it from a run's folder.

        Raises:
            UsageError: there is no signed bundle.
            BundleError: it is not what was signed.
            RunFailedError: the run did not finish.
        """
        agreement, files = run_folder.read_bundle(folder)
        bundle_id = hashlib.sha256(files[MANIFEST_NAME]).hexdigest()
        # Without a roster, whoever took part.
        names = agreement.roster or tuple(run_folder.read_outcome(folder)["merchants"])
        told = _recorded(folder, bundle_id)
        return cls(agreement, bundle_id, files, {name: told.get(name, NOT_ASKED) for name in names})

    @property
    def delivered(self) -> tuple[str, ...]:
        """Who has the bundle."""
        return tuple(name for name, word in self.words.items() if word == DELIVERED)

    @property
    def missing(self) -> dict[str, str]:
        """Who has not, and the word that says why."""
        return {name: word for name, word in self.words.items() if word != DELIVERED}


def deliver(grid: Grid, folder: Path, *, run_id: str, on_event: Callable[[Event], None], clock: Clock) -> Consignment:
    """Send a run's bundle to its merchants that the grid reaches, and record in its folder who has it now.

    `run_id` is the delivery's own, and new for each, because a merchant takes no order of a run that has gone on.

    Raises:
        UsageError, BundleError, RunFailedError: the folder does not hold what can be delivered.
    """
    before = Consignment.of_run(folder)
    agreement = before.agreement
    seals = seals_for(agreement, run_folder.signing_key_file(folder))
    run = Run(Exchange(grid, clock, seals), agreement, agreement.fingerprint, run_id, on_event)
    words = {**dict.fromkeys(before.words, ABSENT), **_answers(run, before)}
    words |= dict.fromkeys(before.delivered, DELIVERED)
    after = Consignment(agreement, before.bundle_id, before.files, words)
    _record(folder, after)
    run.tell(DeliveryFinished(after.delivered, after.missing))
    return after


def _answers(run: Run, consignment: Consignment) -> dict[str, str]:
    """One word for each merchant that was there."""
    outstanding = tuple(consignment.missing) or tuple(consignment.words)
    run.tell(DeliveryStarted(consignment.bundle_id, outstanding))
    awaited = Awaited(tuple(consignment.words), frozenset(outstanding), at_least=0, wait_seconds=WAIT_SECONDS)
    merchants = introduce_those_present(run, awaited)
    packed = np.frombuffer(pack(consignment.files), np.uint8)

    def order(merchant: Merchant) -> DeliverOrder:
        return DeliverOrder(**run.header(merchant.name), bundle=packed)

    heard = run.ask("delivery", merchants, order, _check)
    return {answer.merchant.name: answer.reason or DELIVERED for answer in heard}


def _check(_: Merchant, reply: Reply) -> Delivered:
    if not isinstance(reply, Delivered):
        raise ReplyError("wrong-kind", f"a bundle was delivered, {reply.KIND} came")
    return reply


def _recorded(folder: Path, bundle_id: str) -> Mapping[str, str]:
    """The words of earlier deliveries of this very bundle."""
    try:
        told = json.loads((folder / run_folder.DELIVERIES).read_bytes())
    except FileNotFoundError:
        return {}
    return told["merchants"] if told["bundle"] == bundle_id else {}


def _record(folder: Path, consignment: Consignment) -> None:
    told = {"bundle": consignment.bundle_id, "merchants": dict(consignment.words)}
    durable_files.write(folder / run_folder.DELIVERIES, (json.dumps(told, indent=2) + "\n").encode(), 0o644)
