"""Every error Hansa raises on purpose, under one root, grouped by the party who can mend it.

A message holds the name, the value and what to do next; only `cli.py`, and the `main` of a process of our own, turns
an error into an exit code. `code` is the one word of an error that may travel: a merchant answers the coordinator
with the code and keeps the message, which can name files and values, to itself.
"""

from __future__ import annotations

from typing import ClassVar


class HansaError(Exception):
    """Root of all errors that Hansa raises on purpose."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1


class UsageError(HansaError):
    """The command line or a file given to it does not say anything that can be done."""

    code = "usage"
    exit_code = 2


class AgreementError(UsageError):
    """The agreement is malformed, out of bounds or contradicts itself."""

    code = "agreement-invalid"


class MerchantError(HansaError):
    """The merchant's side can mend this: its data, its policy, its installation."""

    code = "merchant-failed"


class DataError(MerchantError):
    """A merchant's table cannot be read as the agreement says; the message names file, row, column and value."""

    code = "data-invalid"


class PolicyError(MerchantError):
    """An order asks for more than this merchant permits; the message says asked and allowed."""

    code = "not-permitted"


class AgreementMismatchError(PolicyError):
    """An order belongs to another agreement than the one this merchant approved; nothing of it is looked at."""

    code = "agreement-mismatch"


class NotNowError(PolicyError):
    """An order comes while this merchant takes none: it is paused, or the hour is not one that it allows."""

    code = "not-now"


class ReplayError(PolicyError):
    """An order was taken before, or is older than one that was; the message says which it is and which may come."""

    code = "replayed"


class BudgetError(PolicyError):
    """An order costs more privacy than is left; the message says what was spent, asked and allowed."""

    code = "budget-spent"


class BusyError(MerchantError):
    """Another order is being worked on, and did not end while this one waited."""

    code = "busy"


class DeadlineError(MerchantError):
    """The local work did not fit in the order's deadline; it stopped at a chunk boundary."""

    code = "deadline"


class ReplyError(MerchantError):
    """A merchant's reply is not one that can be believed; `reason` is the one short word that the run records."""

    code = "reply-invalid"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CoordinatorError(HansaError):
    """The coordinator's side can mend this: the run, its folder, its cohort."""

    code = "coordinator-failed"


class RunFailedError(CoordinatorError):
    """A run ended without a model: nothing was aggregated, or too few merchants came."""

    code = "run-failed"


class RunInterruptedError(CoordinatorError):
    """A run cannot go on for now: its checkpoint is whole, and it goes on from there once this is mended."""

    code = "run-interrupted"


class RoundAbandonedError(CoordinatorError):
    """A masked sum cannot be known: too few merchants are left, or what they sent does not add up to one. The model
    stays as it is; `reason` is the one short word that the run records.
    """

    code = "round-abandoned"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CompressionError(CoordinatorError):
    """The finished model cannot be made smaller as asked; the float model is as good as before."""

    code = "compression-failed"


class TransportError(HansaError):
    """The other side could not be reached, or what arrived is not a message of this protocol."""

    code = "transport"


class MessageError(TransportError):
    """Bytes that crossed a trust boundary are not a valid record: refused whole, never repaired."""

    code = "message-invalid"


class SignatureError(MessageError):
    """A message that must be signed is not, or by another key than the agreement names; nothing of it is believed."""

    code = "not-signed"


class CertificateError(TransportError):
    """A certificate of the transport does not hold: another issued it, it is for something else, or it has expired."""

    code = "certificate-invalid"


class CertificateUnknownError(CertificateError):
    """A certificate that stands in no register of what was issued."""

    code = "certificate-unknown"


class CertificateRevokedError(CertificateError):
    """A certificate that the coordinator took back."""

    code = "certificate-revoked"


class BundleError(TransportError):
    """A bundle, or a file of one, is not what its maker signed or not a model; refused whole. Names the file."""

    code = "bundle-invalid"
