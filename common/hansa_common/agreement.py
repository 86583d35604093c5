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
from hansa_common.errors import AgreementError
from hansa_common.schema import CellText, Feature, Name, Number, Section
from hansa_common.task_defaults import with_task_defaults
from hansa_common.trust import MerchantName, Trust

Algorithm = Literal["fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedyogi"]
Optimizer = Literal["sgd", "momentum", "adam"]
Activation = Literal["relu", "tanh", "gelu"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(ge=0, lt=1)]

_MAX_HELD_OUT = 0.95
_MIN_CANDIDATES = 2
_MAX_SHOWN_CHARS = 80
_MAX_PROBLEM_CHARS = 300


class Label(Section):
    """The column to predict and the text of its positive value."""

    column: Name
    positive: CellText = "1"


class Data(Section):
    """How rows are cleaned and divided, at every merchant alike.

    `stratified` draws test and validation rows by label from the seed; `time` takes the last rows by
    `time_column`: from `test_from` and `validation_from` where given, else the last shares of each merchant.
    """

    duplicates: Literal["keep", "remove"] = "keep"
    split: Literal["stratified", "time"] = "stratified"
    test_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.2
    validation_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    time_column: Name | None = None
    test_from: Number | None = None
    validation_from: Number | None = None

    @model_validator(mode="after")
    def _split_is_complete(self) -> Self:
        if self.test_share + self.validation_share >= _MAX_HELD_OUT:
            raise ValueError(
                f"test_share {self.test_share} + validation_share {self.validation_share} leave too few rows to train "
                f"on; keep their sum below {_MAX_HELD_OUT}"
            )
        if self.split == "time" and self.time_column is None:
            raise ValueError("split = 'time' needs time_column")
        if (self.test_from is None) != (self.validation_from is None):
            raise ValueError("give both test_from and validation_from, or neither")
        if self.test_from is not None and self.validation_from is not None and self.validation_from >= self.test_from:
            raise ValueError(f"validation_from {self.validation_from} must be before test_from {self.test_from}")
        return self


class Model(Section):
    """The network: embeddings, hidden layers, regularization and loss. No hidden layer is logistic regression."""

    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(max_length=16)] = (64, 32)
    activation: Activation = "relu"
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    l1: Annotated[float, Field(ge=0, le=10)] = 0.0
    l2: Annotated[float, Field(ge=0, le=10)] = 0.0
    layer_norm: bool = False
    loss: Literal["binary_crossentropy", "focal"] = "binary_crossentropy"
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    positive_weight: Positive = 1.0
    output_bias: Annotated[float, Field(ge=-20, le=20)] = 0.0
    precision: Precision = "float32"


class Plan(Section):
    """One way to train: the federated algorithm with its local optimizer and its server step."""

    algorithm: Algorithm = "fedavg"
    optimizer: Optimizer = "sgd"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    local_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    proximal_mu: Annotated[float, Field(ge=0, le=100)] = 0.01
    server_learning_rate: Annotated[float, Field(gt=0, le=100)] = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    server_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    server_tau: Annotated[float, Field(gt=0, le=1)] = 1e-3

    @model_validator(mode="after")
    def _scaffold_needs_sgd(self) -> Self:
        if self.algorithm == "scaffold" and self.optimizer != "sgd":
            raise ValueError(
                f"algorithm 'scaffold' corrects plain SGD steps and is not defined for optimizer {self.optimizer!r}; "
                "set optimizer = 'sgd'"
            )
        return self


class Training(Section):
    """The rounds and the plan. `auto` tries every candidate for trial_rounds and goes on with the best one
    by validation PR-AUC; trial rounds count towards `rounds`. Under `auto`, `plan` says what candidates share.
    """

    algorithm: Algorithm | Literal["auto"] = "fedavg"
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 30
    patience: Annotated[int, Field(ge=1, le=10_000)] = 10
    trial_rounds: Annotated[int, Field(ge=1, le=1000)] = 4
    plan: Plan = Plan()
    candidates: Annotated[tuple[Plan, ...], Field(max_length=100)] = ()

    @model_validator(mode="before")
    @classmethod
    def _plans_stand_alone(cls, values: Any) -> Any:
        # In TOML `algorithm` is said once, at [training], and what candidates share once, at [training.plan].
        if not isinstance(values, dict) or not isinstance(plan := values.get("plan", {}), dict):
            return values
        algorithm, candidates = values.get("algorithm", "fedavg"), values.get("candidates", [])
        if algorithm != "auto":
            return {**values, "plan": {"algorithm": algorithm, **plan}}
        if not isinstance(candidates, list | tuple):
            return values
        whole = [{**plan, **candidate} if isinstance(candidate, dict) else candidate for candidate in candidates]
        return {**values, "candidates": whole}

    @model_validator(mode="after")
    def _algorithm_matches_plans(self) -> Self:
        if self.algorithm == "auto":
            if len(self.candidates) < _MIN_CANDIDATES:
                raise ValueError(
                    f"algorithm = 'auto' needs at least two [[training.candidates]], there are {len(self.candidates)}"
                )
            if self.trial_rounds * len(self.candidates) > self.rounds:
                raise ValueError(
                    f"{len(self.candidates)} candidates x {self.trial_rounds} trial_rounds exceed {self.rounds} rounds"
                )
        elif self.candidates:
            raise ValueError(f"candidates are for algorithm = 'auto', not {self.algorithm!r}")
        elif self.plan.algorithm != self.algorithm:
            raise ValueError(f"plan.algorithm {self.plan.algorithm!r} contradicts algorithm {self.algorithm!r}")
        return self

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans a run may train with; an order names one by its index here."""
        return self.candidates if self.algorithm == "auto" else (self.plan,)


class Cohort(Section):
    """Who takes part in a round, for how long the coordinator waits, and what a believable reply is."""

    min_merchants: Annotated[int, Field(ge=1, le=10_000)] = 2
    size: Annotated[int, Field(ge=1, le=10_000)] | None = None
    wait_seconds: Positive = 300.0
    deadline_seconds: Positive = 600.0
    max_update_norm: Positive = 1e4
    max_examples: Annotated[int, Field(ge=1, le=2**30)] = 2**30


class Privacy(Section):
    """What stays undisclosed: counts below `min_count` are released as zero, score histograms with fewer
    positives than `min_positives` are withheld, and a merchant's own figures leave only with `share_metrics`.
    """

    min_count: Annotated[int, Field(ge=1, le=10_000)] = 5
    min_positives: Annotated[int, Field(ge=1, le=10_000)] = 5
    share_metrics: bool = False
    hash_key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Compression(Section):
    """How the finished model is made smaller, and how much worse it may be for that.

    `none` ships it as trained. `int8` asks the merchants for histograms of activations, whose ends beyond
    `range_quantile` are cut off, and releases the small model where the federation's validation PR-AUC falls by at most
    `max_pr_auc_loss`, and no merchant's own by more than `max_merchant_pr_auc_loss`. Before that, `pruning_rounds`
    more rounds bring `sparsity`, the share of zeros in each hidden kernel, where it is above 0, and as many train on at
    it.
    """

    format: Literal["none", "int8"] = "none"
    range_quantile: Annotated[float, Field(ge=0.9, lt=1)] = 0.9999
    max_pr_auc_loss: Annotated[float, Field(ge=0, le=1)] = 0.003
    max_merchant_pr_auc_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    sparsity: Annotated[float, Field(ge=0, le=0.95)] = 0.0
    pruning_rounds: Annotated[int, Field(ge=1, le=100)] = 4

    @model_validator(mode="after")
    def _sparsity_is_of_a_small_model(self) -> Self:
        if self.sparsity and self.format == "none":
            raise ValueError(
                f"sparsity {self.sparsity:g} is for a small model, and format = 'none' ships the model as trained; "
                "set format = 'int8', or sparsity = 0"
            )
        return self


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
    compression: Compression = Compression()
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
        if self.trust is not None:
            self.trust.check_roster(self.roster)
        if self.roster and self.cohort.min_merchants > len(self.roster):
            raise ValueError(
                f"cohort.min_merchants {self.cohort.min_merchants} exceeds the roster's {len(self.roster)} merchants"
            )
        if self.cohort.size is not None and self.cohort.size < self.cohort.min_merchants:
            raise ValueError(f"cohort.size {self.cohort.size} is below min_merchants {self.cohort.min_merchants}")
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
