"""Every record that crosses a trust boundary: frozen, versioned, size-limited, and nothing else crosses.

On the wire a record is `HANSA`, a version byte, the length of a JSON header, the header, then the raw
little-endian bytes of its vectors in the header's order. There is no pickle and no code. A decoder accepts
exactly what an encoder writes and refuses everything else whole: unknown kinds, unknown or missing fields,
wrong dtypes, lengths that do not add up, sizes above the limits.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa_common.errors import MessageError
from hansa_common.record_types import (
    MAX_COHORT,
    Bytes,
    Figure,
    Floats,
    Integers,
    Name,
    NumRows,
    Order,
    Record,
    Release,
    Reply,
    RoundNumber,
    Stage,
    VectorOf,
)
from hansa_common.secure_messages import (
    KeysOrder,
    KeysReply,
    MaskableOrder,
    MaskedReply,
    Place,
    UnmaskOrder,
    UnmaskReply,
)

# Where a record stands in a message of Flower's: the one field of its one record.
FLOWER_RECORD: Final = "hansa"
FLOWER_FIELD: Final = "message"
MAGIC: Final = b"HANSA"
VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 512 * 2**20
MAX_RANGE_ROWS: Final = 20_000
# A JSON number that every reader takes exactly.
MAX_INTRODUCTION: Final = 2**53
MAX_HEADER_BYTES: Final = 4 * 2**20
_PREFIX: Final = struct.Struct("<5sBI")
_MAX_PROBLEMS: Final = 10


class IntroduceOrder(Order):
    """Asks a node who it is and whether its merchant approved this agreement; to EVERYONE.

    It comes before a run's first exchange, and again where a node is new, so it has no place in the run's sequence.
    Its `number` is above that of every introduction before it, of this coordinator's other runs too, so that an old one
    takes no merchant back into an old run; 0 where orders are not signed.
    """

    KIND: ClassVar[str] = "introduce"
    RELEASE: ClassVar[Release] = "nothing"
    sequence: Literal[0] = 0
    number: Annotated[int, Field(ge=0, le=MAX_INTRODUCTION)] = 0


class StatisticsOrder(MaskableOrder):
    """Asks for the merchant's feature statistics over the agreement's domains."""

    KIND: ClassVar[str] = "statistics"
    RELEASE: ClassVar[Release] = "statistics"


class RoundOrder(MaskableOrder):
    """Evaluate the incoming weights on validation rows, then train from them, in one exchange.

    `control` is SCAFFOLD's server variate, empty for other algorithms. `included` is the reply hash of this
    merchant's last reply that entered an average, or '' if none did: only then is its variate committed. Without
    `asks_scores` the histogram of the incoming weights is all zero: in a masked round everyone's is, or nobody's. There
    `counted` says the same to everyone: the places in the roster of those who have an `included`.

    After the training, the kept model is trained on twice: in stage `prune` with the weights that `masks` (pruning.py)
    prunes held at zero, and in stage `control` without masks, so that the one can be compared with the other. Each
    stage has variates of its own.
    """

    KIND: ClassVar[str] = "round"
    RELEASE: ClassVar[Release] = "training"
    round: RoundNumber
    plan: Annotated[int, Field(ge=0, le=1000)]
    cohort: Annotated[tuple[Name, ...], Field(max_length=MAX_COHORT, fail_fast=True)]
    preprocessing: str
    weights: Floats
    control: Floats
    included: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    stage: Stage = "train"
    masks: Bytes = Field(default_factory=lambda: np.zeros(0, np.uint8))
    asks_scores: bool = True
    counted: Annotated[tuple[Place, ...], Field(max_length=MAX_COHORT, fail_fast=True)] = ()


class EvaluateOrder(MaskableOrder):
    """Evaluate weights, the model of one stage (see RoundOrder), on one part of the rows. `test` comes once a stage. In
    stage `train` it is for the finished model: the merchant then also computes and keeps its own figures and its own
    threshold. The pruned model and its control only stand beside that one, and leave nothing at the merchant.
    """

    KIND: ClassVar[str] = "evaluate"
    RELEASE: ClassVar[Release] = "evaluation"
    split: Literal["validation", "test"]
    preprocessing: str
    weights: Floats
    stage: Stage = "train"


class RangesOrder(Order):
    """Asks for histograms of what flows through the finished network, from which int8 ranges are taken."""

    KIND: ClassVar[str] = "ranges"
    RELEASE: ClassVar[Release] = "activations"
    preprocessing: str
    weights: Floats


class CandidateOrder(Order):
    """Judge a smaller network, a TFLite file, beside the weights of the kept model, on one part of the rows."""

    KIND: ClassVar[str] = "candidate"
    RELEASE: ClassVar[Release] = "judgement"
    split: Literal["validation", "test"]
    preprocessing: str
    weights: Floats
    network: Bytes


class DeliverOrder(Order):
    """Brings the finished bundle: its files, packed (parcel.py), under the manifest that the coordinator signed."""

    KIND: ClassVar[str] = "deliver"
    RELEASE: ClassVar[Release] = "nothing"
    bundle: Bytes


class Introduction(Reply):
    """The merchant's name, versions and device; sent only where the agreement's fingerprint is its own."""

    KIND: ClassVar[str] = "introduction"
    RELEASE: ClassVar[Release] = "nothing"
    hansa_version: Name
    backend: Name
    device: Name


class StatisticsReply(Reply):
    """Fixed-length integer vectors over the agreement's domains; merging is addition."""

    KIND: ClassVar[str] = "statistics-reply"
    RELEASE: ClassVar[Release] = "statistics"
    statistics: Integers
    num_train_rows: NumRows


class RoundReply(Reply):
    """The update of one round: the difference to the order's weights, not the weights.

    `control_delta` is the change of this merchant's SCAFFOLD variate, empty for other algorithms.
    `validation` is the score histogram of the incoming weights (metrics.py), all zero where withheld.
    """

    KIND: ClassVar[str] = "round-reply"
    RELEASE: ClassVar[Release] = "training"
    round: RoundNumber
    num_examples: NumRows
    update: Floats
    control_delta: Floats
    validation: Integers
    train_loss: Figure


class SharedMetrics(BaseModel):
    """One merchant's own figures on its test rows, where the agreement's share_metrics lets them leave."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    num_test_rows: NumRows
    roc_auc: Figure
    pr_auc: Figure


class EvaluateReply(Reply):
    """The score histogram of the weights, all zero where withheld; own test figures only with share_metrics."""

    KIND: ClassVar[str] = "evaluate-reply"
    RELEASE: ClassVar[Release] = "evaluation"
    histogram: Integers
    metrics: SharedMetrics | None


class RangesReply(Reply):
    """Histograms of activations (activations.py) over at most the first MAX_RANGE_ROWS training rows."""

    KIND: ClassVar[str] = "ranges-reply"
    RELEASE: ClassVar[Release] = "activations"
    histograms: Integers


class CandidateReply(Reply):
    """Score histograms of the weights and of the candidate on the same rows, all zero where withheld; `acceptable` is
    False where this merchant's own loss of PR-AUC exceeds what the agreement allows in any one merchant.
    """

    KIND: ClassVar[str] = "candidate-reply"
    RELEASE: ClassVar[Release] = "judgement"
    histogram: Integers
    candidate: Integers
    acceptable: bool


class Delivered(Reply):
    """The bundle was verified and is kept. It says nothing of rows, nor of what the bundle does on them."""

    KIND: ClassVar[str] = "delivered"
    RELEASE: ClassVar[Release] = "nothing"


class Refusal(Reply):
    """The merchant did not do it. The reason stays at the merchant; one code leaves."""

    KIND: ClassVar[str] = "refusal"
    RELEASE: ClassVar[Release] = "nothing"
    code: Literal[
        "agreement-mismatch", "not-permitted", "not-now", "not-signed", "replayed", "data-invalid", "deadline",
        "message-invalid", "failed", "busy", "budget-spent",
    ]  # fmt: skip


_KINDS: Final[dict[str, type[Record]]] = {
    cls.KIND: cls
    for cls in (
        IntroduceOrder, StatisticsOrder, RoundOrder, EvaluateOrder,
        RangesOrder, CandidateOrder, RangesReply, CandidateReply, DeliverOrder, Delivered,
        Introduction, StatisticsReply, RoundReply, EvaluateReply, Refusal,
        KeysOrder, UnmaskOrder, KeysReply, MaskedReply, UnmaskReply,
    )
}  # fmt: skip


def _vector_fields(cls: type[Record]) -> dict[str, np.dtype[Any]]:
    return {
        name: marker.dtype
        for name, info in cls.model_fields.items()
        for marker in info.metadata
        if isinstance(marker, VectorOf)
    }


_VECTORS: Final = {kind: _vector_fields(cls) for kind, cls in _KINDS.items()}


def encode(record: Record) -> bytes:
    """A record as bytes; equal records give equal bytes.

    Raises:
        MessageError: it is above the limits, so that nobody would take it.
    """
    header = _header(record)
    vectors = [getattr(record, name) for name in _VECTORS[record.KIND]]
    num_bytes = _PREFIX.size + len(header) + sum(vector.nbytes for vector in vectors)
    if len(header) > MAX_HEADER_BYTES or num_bytes > MAX_MESSAGE_BYTES:
        raise MessageError(
            f"{record.KIND} has {num_bytes} bytes, {len(header)} of them its header; "
            f"a message may have {MAX_MESSAGE_BYTES}, its header {MAX_HEADER_BYTES}"
        )
    # Views: a copy of each vector on its way into the message costs more than all the rest.
    contents = [np.ascontiguousarray(vector).data for vector in vectors]
    return b"".join([_PREFIX.pack(MAGIC, VERSION, len(header)), header, *contents])


def decode(message: bytes) -> Record:
    """Bytes as a record; its vectors are read-only views of the message.

    Raises:
        MessageError: the bytes are not exactly what `encode` writes for one record within the limits.
    """
    if not _PREFIX.size <= len(message) <= MAX_MESSAGE_BYTES:
        raise MessageError(f"a message has {_PREFIX.size} to {MAX_MESSAGE_BYTES} bytes, this one {len(message)}")
    magic, version, header_bytes = _PREFIX.unpack_from(message)
    if magic != MAGIC or version != VERSION:
        raise MessageError(f"not a Hansa message of version {VERSION}")
    if header_bytes > min(MAX_HEADER_BYTES, len(message) - _PREFIX.size):
        raise MessageError(f"a header of {header_bytes} bytes does not fit")
    start = _PREFIX.size + header_bytes
    header = message[_PREFIX.size : start]
    kind, fields, lengths = _parse_header(header)
    for name, dtype in _VECTORS[kind].items():
        stop = start + lengths[name] * dtype.itemsize
        if stop > len(message):
            raise MessageError(f"{kind}.{name} is longer than the message")
        fields[name] = np.frombuffer(message, dtype, lengths[name], start)
        start = stop
    if start != len(message):
        raise MessageError(f"{len(message) - start} bytes follow the last field of {kind}")
    try:
        record = _KINDS[kind].model_validate(fields)
    except ValidationError as error:
        raise MessageError(f"{kind} is not valid: {_problems(error)}") from None
    # Validation is lenient about "1" for 1; writing the record again is not.
    if _header(record) != header:
        raise MessageError(f"{kind} is not in canonical form")
    return record


def message_hash(message: bytes) -> str:
    """SHA-256 of an encoded record, 64 hexadecimal digits."""
    return hashlib.sha256(message).hexdigest()


def _problems(error: ValidationError) -> str:
    # A header of 4 MiB holds a few hundred thousand unknown keys; telling each would take two gigabytes.
    if error.error_count() > _MAX_PROBLEMS:
        return f"{error.error_count()} problems"
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))


def _header(record: Record) -> bytes:
    vectors = _VECTORS[record.KIND]
    content = {
        "kind": record.KIND,
        "fields": record.model_dump(mode="json", exclude=set(vectors)),
        "lengths": {name: int(getattr(record, name).size) for name in vectors},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def _parse_header(header: bytes) -> tuple[str, dict[str, Any], dict[str, int]]:
    try:
        content = json.loads(header)
    except (ValueError, RecursionError):
        raise MessageError("the header is not JSON") from None
    if not isinstance(content, dict) or content.keys() != {"kind", "fields", "lengths"}:
        raise MessageError("the header must hold exactly kind, fields and lengths")
    kind, fields, lengths = content["kind"], content["fields"], content["lengths"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise MessageError("the header names no known kind of message")
    if not isinstance(fields, dict) or not isinstance(lengths, dict):
        raise MessageError(f"the header of {kind} must hold objects")
    vectors = _VECTORS[kind].keys()
    if lengths.keys() != vectors or fields.keys() != _KINDS[kind].model_fields.keys() - vectors:
        raise MessageError(f"the header of {kind} names other fields than it has")
    if not all(type(length) is int and 0 <= length <= MAX_MESSAGE_BYTES for length in lengths.values()):
        raise MessageError(f"the header of {kind} gives a length out of bounds")
    return kind, fields, lengths
