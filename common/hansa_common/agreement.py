"""What the consortium agreed on, and the fingerprint by which everyone means the same thing.

Everything that can change a result or a guarantee is here; nothing is read from anywhere else at run time.
TOML comes in, a frozen object goes on, and its canonical JSON (sorted keys, no spaces, UTF-8) has the
SHA-256 that orders carry and merchants approve. Reading the file is agreement_file.py's.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hansa_common import __version__
from hansa_common.agreement_sections import Cohort, Compression, Data, Label, Model, Privacy, Training
from hansa_common.audit_agreement import Audit, check_audit_fits
from hansa_common.errors import AgreementError
from hansa_common.privacy_agreement import check_dp_fits
from hansa_common.robust_agreement import Robustness, check_robustness_fits
from hansa_common.schema import Feature, Section
from hansa_common.secure_agreement import SecureAggregation, check_secure_aggregation_fits
from hansa_common.task_defaults import with_task_defaults
from hansa_common.trust import MerchantName, Trust

_MAX_SHOWN_CHARS = 80
_MAX_PROBLEM_CHARS = 300


class Agreement(Section):
    """The whole agreement. Equal agreements have equal fingerprints, and no others do."""

    name: Annotated[str, Field(min_length=1, max_length=120)] = "hansa"
    hansa_common: Annotated[str, Field(max_length=120)] = __version__
    task: Literal["fraud", "purchase"]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    label: Label
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=4096)]
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    cohort: Cohort = Cohort()
    privacy: Privacy = Privacy()
    robustness: Robustness = Robustness()
    secure_aggregation: SecureAggregation = SecureAggregation()
    compression: Compression = Compression()
    audit: Audit = Audit()
    roster: Annotated[tuple[MerchantName, ...], Field(max_length=10_000)] = ()
    trust: Trust | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_task_defaults(cls, values: Any) -> Any:
        return with_task_defaults(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        names = Counter(feature.name for feature in self.features)
        for name, times in names.items():
            if times > 1:
                raise ValueError(f"feature {name!r} is declared twice")
        if self.label.column in names:
            raise ValueError(f"the label {self.label.column!r} is also a feature; remove it from the features")
        for name, times in Counter(self.roster).items():
            if times > 1:
                raise ValueError(f"the roster names merchant {name!r} twice")
        check_audit_fits(self.audit, self.data, self.trust)
        if self.trust is not None:
            self.trust.check_roster(self.roster)
        if self.roster and self.cohort.min_merchants > len(self.roster):
            raise ValueError(
                f"cohort.min_merchants {self.cohort.min_merchants} exceeds the roster's {len(self.roster)} merchants"
            )
        if self.cohort.size is not None and self.cohort.size < self.cohort.min_merchants:
            raise ValueError(f"cohort.size {self.cohort.size} is below min_merchants {self.cohort.min_merchants}")
        private_parts = (self.privacy, self.label, self.data, self.model, self.training, self.compression)
        check_dp_fits(*private_parts, self.secure_aggregation)
        check_robustness_fits(self.robustness, self.training, self.cohort, self.roster)
        parts = (self.cohort, self.roster, self.training, self.privacy, self.compression, self.robustness)
        check_secure_aggregation_fits(self.secure_aggregation, *parts)
        if self.compression.sparsity and not self.model.hidden:
            raise ValueError(
                f"compression.sparsity {self.compression.sparsity:g} prunes hidden layers, and model.hidden has none; "
                "add a hidden layer, or set sparsity = 0"
            )
        return self

    def canonical_json(self) -> bytes:
        """Sorted keys, no spaces, UTF-8: the bytes that the fingerprint is taken over."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    @property
    def roster_fingerprint(self) -> str | None:
        """SHA-256 over the parties' names and keys, which merchants compare out of band; None without [trust]."""
        return None if self.trust is None else self.trust.roster_fingerprint

    @property
    def chooses_by_validation(self) -> bool:
        """Whether merchants' validation figures choose the model and end training; else the last model is kept, after
        all rounds.
        """
        return self.robustness.is_mean and self.privacy.dp is None

    def with_trust(self, trust: Trust) -> Agreement:
        """The same agreement with these keys; validated again."""
        return validate_agreement({**self.model_dump(mode="json"), "trust": trust.model_dump()}, "the agreement")

    def without_trust(self) -> Agreement:
        """The same agreement for a simulation, where nothing is signed; the weights do not depend on keys."""
        return validate_agreement({**self.model_dump(mode="json"), "trust": None}, "the agreement")

    def with_roster(self, roster: tuple[str, ...]) -> Agreement:
        """The same agreement for these merchants; validated again."""
        return validate_agreement({**self.model_dump(mode="json"), "roster": list(roster)}, "the agreement")

    def with_seed(self, seed: int) -> Agreement:
        """The same agreement with another seed; validated again."""
        return validate_agreement({**self.model_dump(mode="json"), "seed": seed}, "the agreement")


def parse_agreement(text: str, source: str) -> Agreement:
    """Read TOML into an agreement.

    Raises:
        AgreementError: not TOML, or a key is unknown, or a value is out of bounds; names every place.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Beside its own error the parser lets through those of a number of thousands of digits and of deep nesting.
        raise AgreementError(f"{source} is not TOML: {error}") from error
    return validate_agreement(values, source)


def validate_agreement(values: dict[str, Any], source: str) -> Agreement:
    """Check a plain dictionary (from TOML or canonical JSON) and freeze it.

    Raises:
        AgreementError: with one line for each thing that is wrong.
    """
    # First, because what another version agreed on may have keys that this one does not know.
    agreed_version = values.get("hansa_common", __version__) if isinstance(values, dict) else __version__
    if agreed_version != __version__:
        raise AgreementError(
            f"{source} was made for hansa_common {_shown(agreed_version)}, this is {__version__}; "
            "install the agreed version, or agree anew"
        )
    try:
        return Agreement.model_validate(values)
    except ValidationError as error:
        problems: list[dict[str, Any]] = [dict(problem) for problem in error.errors(include_url=False)]
        lines = [f"  {_place(p['loc'])}: {_problem(p)}" for p in problems if not _is_echo(p, problems)]
        raise AgreementError("\n".join([f"{source} does not hold:", *lines])) from None


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "agreement"


def _is_echo(problem: dict[str, Any], problems: list[dict[str, Any]]) -> bool:
    # A list is also called too short for the entries that were refused.
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        other["loc"][: len(place)] == place for other in problems if other is not problem
    )


def _problem(error: dict[str, Any]) -> str:
    if error["type"] == "union_tag_invalid":
        return f"there is no kind {_shown(error['ctx']['tag'])}; allowed: {error['ctx']['expected_tags']}"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message if len(message) <= _MAX_PROBLEM_CHARS else message[:_MAX_PROBLEM_CHARS] + "..."
    value = error.get("input")
    shown = "" if isinstance(value, dict | list) or value is None else f" (got {_shown(value)})"
    return message if error["type"] in {"unknown_key", "value_error", "missing"} else message + shown


def _shown(value: object) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:
        # Python writes no integer of more than 4300 digits.
        return "a number of thousands of digits"
    text = text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
    return repr(text) if isinstance(value, str) else text
