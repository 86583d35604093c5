"""What the records of messages.py are made of: the types of their fields, and what every order and every reply says."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from hansa_common.ledger_state import LedgerText

# The recipient of an introduction: nobody's name is known yet, and no merchant's may be this.
EVERYONE: Final = "*"
MAX_COHORT: Final = 10_000


class VectorOf:
    """Marks a field as a one-dimensional vector that travels as raw bytes."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")

    def check(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype != self.dtype or value.ndim != 1:
            raise ValueError(f"must be a one-dimensional {self.dtype} array")
        return value


def _vector(dtype: str) -> Any:
    marker = VectorOf(dtype)
    return (marker, BeforeValidator(marker.check))


Floats = Annotated[NDArray[np.float32], *_vector("float32")]
Integers = Annotated[NDArray[np.int64], *_vector("int64")]
# Elements of Z / 2^32, see masking.py.
Elements = Annotated[NDArray[np.uint32], *_vector("uint32")]
Bytes = Annotated[NDArray[np.uint8], *_vector("uint8")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# No control characters: names are shown on terminals, and an escape sequence could rewrite what stands there.
Name = Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
MAX_ROWS: Final = 2**30
NumRows = Annotated[int, Field(ge=1, le=MAX_ROWS)]
# -0.0 equals 0.0 but is written otherwise: equal records give equal bytes.
Figure = Annotated[float, AfterValidator(lambda value: value + 0.0)]
RoundNumber = Annotated[int, Field(ge=0, le=1_000_000)]
SequenceNumber = Annotated[int, Field(ge=1, le=2**53)]
Stage = Literal["train", "prune", "control"]
# What of a merchant's rows an order asks for, or a reply tells; privacy_costs.py says what each costs.
Release = Literal["nothing", "statistics", "training", "evaluation", "activations", "judgement"]


class Record(BaseModel):
    """Base of all records; a subclass names its KIND, what of a merchant's rows it is about, and its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    KIND: ClassVar[str]
    RELEASE: ClassVar[Release]


class Order(Record):
    """What every order says: which run and which of its exchanges, counted from 1, to whom, under which agreement, and
    how long it may take.
    """

    run_id: Name
    sequence: SequenceNumber
    recipient: Name
    fingerprint: Digest
    deadline_seconds: Annotated[float, Field(gt=0, le=1e6)]


class Reply(Record):
    """What every reply says: who answers which order, and how far this merchant's privacy ledger is (ledger_state.py),
    empty where it keeps none.
    """

    merchant: Name
    order_hash: Digest
    ledger: LedgerText = ""
