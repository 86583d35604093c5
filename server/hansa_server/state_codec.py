"""Frozen dataclasses as plain JSON values with their arrays beside them, and back, by the fields' types.

What is written is what the types say, and a reader takes exactly that: every field, no other, each of its own type,
each array of its length with the bytes of its hash. There is no code and no pickle. An array stands in the JSON as
`{"length": n, "sha256": hash}`, and beside it as raw little-endian bytes of the type that its field has.

| a field's type                  | in JSON                |
|---------------------------------|------------------------|
| str, int, float, bool, Literal  | the same               |
| X or None                       | X, or null             |
| tuple                           | a list                 |
| Mapping with words as keys      | an object              |
| dataclass                       | an object, by field    |
| one-dimensional numpy array     | its length and hash    |
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")
_PLAIN: Final = (str, int, float, bool)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def to_plain(kind: Any, value: Any, arrays: dict[str, bytes]) -> Any:
    """The value, whose type is `kind`, in plain values; the bytes of its arrays are put into `arrays` by their hash.

    Raises:
        TypeError: the value is not of that type, or the type is none that can be written.
    """
    if dataclasses.is_dataclass(kind):
        _expect(type(value) is kind, kind, value)
        hints = get_type_hints(kind)
        return {f.name: to_plain(hints[f.name], getattr(value, f.name), arrays) for f in dataclasses.fields(kind)}
    origin = get_origin(kind)
    if origin in {Union, types.UnionType}:
        return None if value is None else to_plain(_optional(kind), value, arrays)
    if origin is tuple:
        _expect(isinstance(value, tuple), kind, value)
        kinds = _kinds_of_items(kind, len(value))
        return [to_plain(item_kind, item, arrays) for item_kind, item in zip(kinds, value, strict=True)]
    if origin is Mapping:
        _expect(isinstance(value, Mapping), kind, value)
        key_kind, item_kind = get_args(kind)
        return {to_plain(key_kind, key, arrays): to_plain(item_kind, item, arrays) for key, item in value.items()}
    if origin is np.ndarray:
        return _array_to_plain(kind, value, arrays)
    _expect(_is_plain(kind, value), kind, value)
    return value


def from_plain(kind: type[T], plain: Any, array: Callable[[str], bytes]) -> T:
    """The value of type `kind` that `to_plain` wrote; `array` finds an array's bytes by their hash.

    Raises:
        ValueError: it did not write these plain values for this type.
    """
    try:
        value: T = _from_plain(kind, plain, array)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return value


def _from_plain(kind: Any, plain: Any, array: Callable[[str], bytes]) -> Any:
    if dataclasses.is_dataclass(kind):
        hints, names = get_type_hints(kind), [field.name for field in dataclasses.fields(kind)]
        _expect(isinstance(plain, dict) and plain.keys() == set(names), kind, plain)
        return kind(**{name: _from_plain(hints[name], plain[name], array) for name in names})  # type: ignore[operator]  # a type, as it has fields
    origin = get_origin(kind)
    if origin in {Union, types.UnionType}:
        return None if plain is None else _from_plain(_optional(kind), plain, array)
    if origin is tuple:
        _expect(isinstance(plain, list), kind, plain)
        kinds = _kinds_of_items(kind, len(plain))
        return tuple(_from_plain(item_kind, item, array) for item_kind, item in zip(kinds, plain, strict=True))
    if origin is Mapping:
        _expect(isinstance(plain, dict), kind, plain)
        key_kind, item_kind = get_args(kind)
        return {_from_plain(key_kind, key, array): _from_plain(item_kind, item, array) for key, item in plain.items()}
    if origin is np.ndarray:
        return _array_from_plain(kind, plain, array)
    _expect(_is_plain(kind, plain), kind, plain)
    return plain


def _array_to_plain(kind: Any, value: Any, arrays: dict[str, bytes]) -> dict[str, Any]:
    dtype = _dtype(kind)
    _expect(isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == dtype, kind, value)
    raw = value.astype(dtype).tobytes()
    digest = hashlib.sha256(raw).hexdigest()
    arrays[digest] = raw
    return {"length": int(value.size), "sha256": digest}


def _array_from_plain(kind: Any, plain: Any, array: Callable[[str], bytes]) -> Any:
    _expect(isinstance(plain, dict) and plain.keys() == {"length", "sha256"}, kind, plain)
    digest, dtype = plain["sha256"], _dtype(kind)
    # Before it is looked for: a hash is the name of a file.
    _expect(isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None, kind, plain)
    raw = array(digest)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"the array {digest} does not have the bytes of its name")
    _expect(type(plain["length"]) is int and len(raw) == plain["length"] * dtype.itemsize, kind, plain)
    return np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))


def _dtype(kind: Any) -> np.dtype[Any]:
    """The little-endian type of the numbers in `NDArray[np.float32]` and the like."""
    _, dtype_kind = get_args(kind)
    dtype: np.dtype[Any] = np.dtype(*get_args(dtype_kind))
    return dtype.newbyteorder("<")


def _optional(kind: Any) -> Any:
    (inner,) = (option for option in get_args(kind) if option is not types.NoneType)
    return inner


def _kinds_of_items(kind: Any, length: int) -> tuple[Any, ...]:
    kinds = get_args(kind)
    return (kinds[0],) * length if kinds[-1] is Ellipsis else kinds


def _is_plain(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    # A float may be numpy's, whose text is the same; a bool is no number.
    return kind in _PLAIN and (type(value) is kind or (kind is float and isinstance(value, float)))


def _expect(holds: bool, kind: Any, value: Any) -> None:
    if not holds:
        raise TypeError(f"{str(value)[:80]!r} is not a {getattr(kind, '__name__', kind)}")
