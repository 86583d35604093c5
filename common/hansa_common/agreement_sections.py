"""The parts of an agreement, each a section of its file with its own bounds and what must hold within it.

What must hold between sections is agreement.py's; features are schema.py's, keys trust.py's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.schema import CellText, Name, Number, Section

Algorithm = Literal["fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedyogi"]
Optimizer = Literal["sgd", "momentum", "adam"]
Activation = Literal["relu", "tanh", "gelu"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(ge=0, lt=1)]

_MAX_HELD_OUT = 0.95
_MIN_CANDIDATES = 2


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
    """One way to train: the federated algorithm with its local optimizer and its server step.

    With `local_steps` everyone takes as many steps in a round, however many rows it has, and epochs are not counted.
    """

    algorithm: Algorithm = "fedavg"
    optimizer: Optimizer = "sgd"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    local_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    proximal_mu: Annotated[float, Field(ge=0, le=100)] = 0.01
    server_learning_rate: Annotated[float, Field(gt=0, le=100)] = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    server_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    server_tau: Annotated[float, Field(gt=0, le=1)] = 1e-3

    @model_validator(mode="after")
    def _work_is_said_once(self) -> Self:
        if self.local_steps is not None and self.local_epochs != 1:
            raise ValueError(
                f"local_steps {self.local_steps} and local_epochs {self.local_epochs} both say when a round's training "
                "ends; leave one of them out"
            )
        return self

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
        whole = [_whole(plan, candidate) if isinstance(candidate, dict) else candidate for candidate in candidates]
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
    """Who takes part in a round, for how long the coordinator waits, what a believable reply is, and what becomes of a
    merchant whose privacy ledger went back: the coordinator tells of it, or also leaves that merchant out.
    """

    min_merchants: Annotated[int, Field(ge=1, le=10_000)] = 2
    size: Annotated[int, Field(ge=1, le=10_000)] | None = None
    wait_seconds: Positive = 300.0
    deadline_seconds: Positive = 600.0
    max_update_norm: Positive = 1e4
    max_examples: Annotated[int, Field(ge=1, le=2**30)] = 2**30
    rewound_ledger: Literal["tell", "leave-out"] = "tell"


class Privacy(Section):
    """What stays undisclosed: counts below `min_count` are released as zero, score histograms with fewer
    positives than `min_positives` are withheld, and a merchant's own figures leave only with `share_metrics`.
    Under `dp` what leaves has noise, or does not leave, and those floors have no place.
    """

    min_count: Annotated[int, Field(ge=1, le=10_000)] = 5
    min_positives: Annotated[int, Field(ge=1, le=10_000)] = 5
    share_metrics: bool = False
    hash_key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    dp: DifferentialPrivacy | None = None


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


def _whole(shared: dict[str, Any], candidate: dict[str, Any]) -> dict[str, Any]:
    """A candidate with what is shared; its own word on how long it trains replaces theirs, in whichever unit."""
    own = "local_steps" if "local_epochs" in candidate else "local_epochs"
    replaced = {own} if candidate.keys() & {"local_steps", "local_epochs"} else set()
    return {**{key: value for key, value in shared.items() if key not in replaced}, **candidate}
