"""The lines of a ledger, and what an order is charged.

Every mechanism of a line is written out, so that what was spent can be computed from the file alone, by whoever has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from hansa_client.chained_lines import MAX_TEXT_CHARS, Chain, ChainedFile, ChainedLine, Text
from hansa_client.ledger_account import Limit, Tally, tally_of
from hansa_client.ledger_payers import PayerId
from hansa_common.plain_text import printable
from hansa_common.privacy import Gaussian, Mechanism, SampledDiscreteGaussian, SampledGaussian
from hansa_common.record_types import Digest
from hansa_common.schema import Section

MAX_MECHANISMS: Final = 64
_REMEDY: Final = "put the ledger back as it was: without it nobody knows what was spent"

Noise = Annotated[float, Field(ge=0, le=1e9)]
Times = Annotated[int, Field(ge=1, le=2**53)]


class SampledCharge(Section):
    """Steps over samples, in a line."""

    noise_multiplier: Noise
    sampling_rate: Annotated[float, Field(ge=0, le=1)]
    num_steps: Times


class SampledGaussianCharge(SampledCharge):
    """hansa_common.privacy.SampledGaussian, in a line."""

    kind: Literal["sampled-gaussian"]

    @property
    def mechanism(self) -> Mechanism:
        return SampledGaussian(self.noise_multiplier, self.sampling_rate, self.num_steps)


class SampledDiscreteGaussianCharge(SampledCharge):
    """hansa_common.privacy.SampledDiscreteGaussian, in a line."""

    kind: Literal["sampled-discrete-gaussian"]

    @property
    def mechanism(self) -> Mechanism:
        return SampledDiscreteGaussian(self.noise_multiplier, self.sampling_rate, self.num_steps)


class GaussianCharge(Section):
    """hansa_common.privacy.Gaussian, in a line."""

    kind: Literal["gaussian"]
    noise_multiplier: Noise
    num_releases: Times = 1

    @property
    def mechanism(self) -> Mechanism:
        return Gaussian(self.noise_multiplier, self.num_releases)


MechanismCharge = Annotated[
    SampledGaussianCharge | SampledDiscreteGaussianCharge | GaussianCharge, Field(discriminator="kind")
]


class Entry(ChainedLine):
    """One line. `payer` is the state folder whose answer to the order was charged, or leaves (ledger_payers.py); lines
    of before there were payers name none. `epsilon` and `delta` are what the agreement allows for all orders under it.
    """

    what: Literal["charged", "answered"]
    order: Digest
    payer: PayerId = ""
    run: Text = ""
    agreement: Digest | None = None
    coordinator: Text = ""
    kind: Text = ""
    mechanisms: Annotated[tuple[MechanismCharge, ...], Field(max_length=MAX_MECHANISMS)] = ()
    why: Text = ""
    epsilon: float | None = None
    delta: float | None = None

    @property
    def answer(self) -> tuple[str, str]:
        """Which answer it is about: whose, and to which order."""
        return self.payer, self.order

    @property
    def cost(self) -> Tally:
        """What was charged, by what is applied once."""
        return tally_of(charge.mechanism for charge in self.mechanisms)


@dataclass(frozen=True)
class Charge:
    """What an order is charged: its hash and where it comes from, the mechanisms, `why` in words, and what the
    agreement allows for all orders under it.
    """

    order_hash: str
    run: str
    agreement: str
    coordinator: str
    kind: str
    mechanisms: tuple[Mechanism, ...]
    why: str
    agreed: Limit

    def entry(self, payer: str, before: Chain, at: datetime) -> Entry:
        """The line that says so of a payer's answer, after those before it."""
        return Entry(
            number=before.num_lines + 1,
            at=at.isoformat(timespec="milliseconds"),
            previous=before.head,
            what="charged",
            order=self.order_hash,
            payer=payer,
            run=printable(self.run, MAX_TEXT_CHARS),
            agreement=self.agreement,
            coordinator=printable(self.coordinator, MAX_TEXT_CHARS),
            kind=self.kind,
            mechanisms=tuple(map(_line_of, self.mechanisms)),
            why=printable(self.why, MAX_TEXT_CHARS),
            epsilon=self.agreed.epsilon,
            delta=self.agreed.delta,
        )


def answered_entry(order_hash: str, payer: str, before: Chain, at: datetime) -> Entry:
    """The line that says that a payer's answer to an order leaves."""
    return Entry(
        number=before.num_lines + 1,
        at=at.isoformat(timespec="milliseconds"),
        previous=before.head,
        what="answered",
        order=order_hash,
        payer=payer,
    )


def ledger_lines(path: Path) -> ChainedFile[Entry]:
    """The lines of the ledger in this file."""
    return ChainedFile(path, Entry, "a ledger", _REMEDY)


def entries(path: Path) -> Iterator[Entry]:
    """The lines of a ledger, verified as they come.

    Raises:
        MerchantError: it cannot be read, or a line does not follow from the one before it; says which.
    """
    return (entry for entry, _ in ledger_lines(path).links() if entry is not None)


def _line_of(mechanism: Mechanism) -> SampledGaussianCharge | SampledDiscreteGaussianCharge | GaussianCharge:
    match mechanism:
        case SampledDiscreteGaussian():
            return SampledDiscreteGaussianCharge(
                kind="sampled-discrete-gaussian",
                noise_multiplier=mechanism.noise_multiplier,
                sampling_rate=mechanism.sampling_rate,
                num_steps=mechanism.num_steps,
            )
        case SampledGaussian():
            return SampledGaussianCharge(
                kind="sampled-gaussian",
                noise_multiplier=mechanism.noise_multiplier,
                sampling_rate=mechanism.sampling_rate,
                num_steps=mechanism.num_steps,
            )
        case Gaussian():
            return GaussianCharge(
                kind="gaussian", noise_multiplier=mechanism.noise_multiplier, num_releases=mechanism.num_releases
            )
