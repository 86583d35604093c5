"""The shared network: its specification as JSON, its weights as plain arrays, and the Keras model of both.

This is the only place that knows which weight stands where. Order: each embedding table; then for each hidden layer
its kernel, its bias and, with layer_norm, the norm's gain and offset; then the output's kernel and bias. The network
ends in one logit. L1 and L2 are on the kernels: an embedding row is not pulled to zero by batches it is not in.

A model arrives as a specification and arrays, never as a Keras file: nothing received can bring code. Keras is
imported only where a network is built.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hansa_common.agreement import Agreement
from hansa_common.agreement_sections import Activation, Precision
from hansa_common.errors import UsageError
from hansa_common.features import FittedPreprocessing
from hansa_common.randomness import generator
from hansa_common.schema import Name, Section, embedded, num_dense
from hansa_common.vectors import Shapes, Vector, flatten, unflatten

if TYPE_CHECKING:
    import keras

SPEC_NAME: Final = "spec.json"
WEIGHTS_NAME: Final = "weights.npz"
PREPROCESSING_NAME: Final = "preprocessing.json"
MODEL_NAMES: Final = (SPEC_NAME, WEIGHTS_NAME, PREPROCESSING_NAME)
# Added to the variance; Keras' own choice, said once because the network is computed in other places too.
LAYER_NORM_EPSILON: Final = 1e-3
_EMBEDDING_REACH: Final = 0.05


class EmbeddingSpec(Section):
    """One embedding table, (num_ids, dim), for one column of the id matrix."""

    feature: Name
    num_ids: Annotated[int, Field(ge=1, le=100_000)]
    dim: Annotated[int, Field(ge=1, le=256)]


class ModelSpec(Section):
    """The network's structure: all that is needed to build it, and nothing of how it is trained but its penalties."""

    num_dense: Annotated[int, Field(ge=0)]
    embeddings: tuple[EmbeddingSpec, ...]
    hidden: tuple[Annotated[int, Field(ge=1, le=8192)], ...]
    activation: Activation
    dropout: Annotated[float, Field(ge=0, lt=1)]
    l1: Annotated[float, Field(ge=0)]
    l2: Annotated[float, Field(ge=0)]
    layer_norm: bool
    output_bias: float

    @model_validator(mode="after")
    def _has_inputs(self) -> Self:
        if not self.num_dense and not self.embeddings:
            raise ValueError("a network without inputs")
        return self

    @classmethod
    def from_agreement(cls, agreement: Agreement) -> ModelSpec:
        """The network that the agreement describes, for the inputs of its features."""
        model = agreement.model
        return cls(
            num_dense=num_dense(agreement.features),
            embeddings=tuple(
                EmbeddingSpec(feature=feature.name, num_ids=feature.num_ids, dim=feature.embedding_dim)
                for feature in embedded(agreement.features)
            ),
            hidden=model.hidden,
            activation=model.activation,
            dropout=model.dropout,
            l1=model.l1,
            l2=model.l2,
            layer_norm=model.layer_norm,
            output_bias=model.output_bias,
        )

    @property
    def named_shapes(self) -> dict[str, tuple[int, ...]]:
        """Each weight's name, `layer.weight`, and shape, in order."""
        shapes: dict[str, tuple[int, ...]] = {}
        width = self.num_dense + sum(embedding.dim for embedding in self.embeddings)
        for i, embedding in enumerate(self.embeddings):
            shapes[f"embedding_{i}.table"] = (embedding.num_ids, embedding.dim)
        for i, num_units in enumerate(self.hidden):
            shapes[f"hidden_{i}.kernel"], shapes[f"hidden_{i}.bias"] = (width, num_units), (num_units,)
            if self.layer_norm:
                shapes[f"norm_{i}.gain"], shapes[f"norm_{i}.offset"] = (num_units,), (num_units,)
            width = num_units
        return {**shapes, "output.kernel": (width, 1), "output.bias": (1,)}

    @property
    def shapes(self) -> Shapes:
        """The shapes of all weights, in order."""
        return tuple(self.named_shapes.values())


def initial_weights(spec: ModelSpec, seed: int) -> Vector:
    """(num_params,) weights derived from the seed: kernels by Glorot and Bengio (2010), uniform; tables uniform;
    biases zero, the output's as agreed.
    """
    return flatten([_initial(name, shape, spec, seed) for name, shape in spec.named_shapes.items()])


def build_model(spec: ModelSpec, precision: Precision = "float32") -> keras.Model:
    """A Keras model from `model_inputs` to logits (rows, 1) float32; its weights are Keras' own until they are set."""
    import keras

    layers, policy = keras.layers, keras.DTypePolicy(precision)
    inputs, parts = [], []
    if spec.num_dense:
        inputs.append(keras.Input((spec.num_dense,), name="dense"))
        parts.append(inputs[-1])
    if spec.embeddings:
        ids = keras.Input((len(spec.embeddings),), dtype="int32", name="ids")
        inputs.append(ids)
        for i, embedding in enumerate(spec.embeddings):
            table = layers.Embedding(embedding.num_ids, embedding.dim, dtype=policy, name=f"embedding_{i}")
            parts.append(table(ids[:, i]))
    x = layers.Concatenate(dtype=policy)(parts) if len(parts) > 1 else parts[0]
    penalty = keras.regularizers.L1L2(spec.l1, spec.l2) if spec.l1 or spec.l2 else None
    for i, num_units in enumerate(spec.hidden):
        x = _hidden(spec, i, num_units, penalty, policy)(x)
    logits = layers.Dense(1, kernel_regularizer=penalty, dtype="float32", name="output")(x)
    return keras.Model(inputs, logits)


def model_inputs(spec: ModelSpec, dense: Any, ids: Any) -> list[Any]:
    """What a model built from the specification is called with: those of the two that it has."""
    return [part for part, is_used in ((dense, spec.num_dense), (ids, spec.embeddings)) if is_used]


def ordered_variables(model: keras.Model, spec: ModelSpec) -> list[Any]:
    """The model's Keras variables in the order of `spec.shapes`."""
    layer_names = dict.fromkeys(name.partition(".")[0] for name in spec.named_shapes)
    return [variable for name in layer_names for variable in model.get_layer(name).trainable_variables]


def model_files(spec: ModelSpec, weights: Vector, preprocessing: FittedPreprocessing) -> dict[str, bytes]:
    """Specification, weights (num_params,) and preprocessing as the bytes of files; equal models, equal bytes."""
    arrays = zip(spec.named_shapes, unflatten(weights, spec.shapes), strict=True)
    archive = io.BytesIO()
    np.savez(archive, **dict(arrays))  # type: ignore[arg-type]  # numpy types its options among the arrays
    return {
        SPEC_NAME: f"{spec.model_dump_json(indent=2)}\n".encode(),
        PREPROCESSING_NAME: f"{preprocessing.to_json()}\n".encode(),
        WEIGHTS_NAME: archive.getvalue(),
    }


def model_parts(files: Mapping[str, bytes]) -> tuple[ModelSpec, Vector, FittedPreprocessing]:
    """Read what `model_files` gives: specification, weights (num_params,), preprocessing.

    Raises:
        ValueError: a file is not a model's, or they do not belong together; says which.
        MessageError: the preprocessing is not valid.
    """
    spec = ModelSpec.model_validate_json(files[SPEC_NAME].decode())
    preprocessing = FittedPreprocessing.from_json(files[PREPROCESSING_NAME].decode())
    try:
        weights = flatten(_arrays(files[WEIGHTS_NAME], spec))
    except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
        # Of a damaged archive zipfile says all of these.
        raise ValueError(f"{WEIGHTS_NAME}: {error}") from error
    _refuse_other_inputs(spec, preprocessing)
    return spec, weights, preprocessing


def save_model(folder: Path, spec: ModelSpec, weights: Vector, preprocessing: FittedPreprocessing) -> None:
    """Write specification, weights (num_params,) and preprocessing; equal models give equal bytes."""
    for name, content in model_files(spec, weights, preprocessing).items():
        (folder / name).write_bytes(content)


def load_model_parts(folder: Path) -> tuple[ModelSpec, Vector, FittedPreprocessing]:
    """Read what `save_model` wrote: specification, weights (num_params,), preprocessing.

    Raises:
        UsageError: a file is not there or not a model's; says which.
        MessageError: the preprocessing is not valid.
    """
    try:
        return model_parts({name: (folder / name).read_bytes() for name in MODEL_NAMES})
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} does not hold a model: {error}") from error


def _hidden(spec: ModelSpec, place: int, num_units: int, penalty: Any, policy: Any) -> Any:
    """A function from one hidden layer's input to its output."""
    import keras

    from hansa_common.dropout import SeededDropout

    layers = keras.layers
    # One layer with its activation where there is no norm: that is what can be pruned and quantized.
    activation = None if spec.layer_norm else spec.activation
    steps = [
        layers.Dense(num_units, activation, kernel_regularizer=penalty, dtype=policy, name=f"hidden_{place}"),
    ]
    if spec.layer_norm:
        steps += [
            layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=policy, name=f"norm_{place}"),
            layers.Activation(spec.activation, dtype=policy),
        ]
    if spec.dropout:
        steps.append(SeededDropout(spec.dropout, dtype=policy, name=f"dropout_{place}"))

    def apply(x: Any) -> Any:
        for step in steps:
            x = step(x)
        return x

    return apply


def _initial(name: str, shape: tuple[int, ...], spec: ModelSpec, seed: int) -> NDArray[np.float32]:
    random = generator(seed, "initial weights", name)
    match name.partition(".")[2]:
        case "kernel":
            reach = np.sqrt(6.0 / sum(shape))
            return random.uniform(-reach, reach, shape).astype(np.float32)
        case "table":
            return random.uniform(-_EMBEDDING_REACH, _EMBEDDING_REACH, shape).astype(np.float32)
        case "gain":
            return np.ones(shape, np.float32)
    return np.full(shape, spec.output_bias if name == "output.bias" else 0.0, np.float32)


def _arrays(content: bytes, spec: ModelSpec) -> Sequence[NDArray[np.float32]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if sorted(names) != sorted(spec.named_shapes):
            raise ValueError(f"{WEIGHTS_NAME} holds {names}, the model has {list(spec.named_shapes)}")
        return [_array(archive, name, shape) for name, shape in spec.named_shapes.items()]


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """One array as `save_model` writes it and in no other form: nothing else is parsed, unpacked or unpickled."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    size = len(header.getvalue()) + 4 * math.prod(shape)
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size == size:
        stored = archive.read(entry)
        if stored.startswith(header.getvalue()):
            array = np.frombuffer(stored, "<f4", offset=len(header.getvalue())).reshape(shape)
            if np.isfinite(array).all():
                return array
    raise ValueError(f"{WEIGHTS_NAME}: {name} is not a finite float32 array {shape}")


def _refuse_other_inputs(spec: ModelSpec, preprocessing: FittedPreprocessing) -> None:
    features = preprocessing.features
    expected = [(feature.name, feature.num_ids, feature.embedding_dim) for feature in embedded(features)]
    if spec.num_dense != num_dense(features) or [(e.feature, e.num_ids, e.dim) for e in spec.embeddings] != expected:
        raise ValueError(f"{PREPROCESSING_NAME} is for another network than {SPEC_NAME}")
