"""A record against the model's inputs: names, ranks, dimensions, dtypes, finite values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError, did_you_mean
from qcli.types import Array


def check_sample(record: Record, inputs: tuple[InputSpec, ...]) -> dict[str, Array]:
    """What to feed the model, in its order of inputs. Raises InputError that names file and input.

    A batch axis is added when the rank is one short and the input's first axis is free or 1.
    Example: [3, 32, 32] for an input [None, 3, 32, 32] becomes [1, 3, 32, 32].
    """
    arrays = _named(record, inputs)
    return {spec.name: _checked(arrays[spec.name], spec, record.file) for spec in inputs}


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether every fixed dimension agrees; ranks must be equal."""
    return len(shape) == len(wanted) and all(want in (None, have) for have, want in zip(shape, wanted, strict=True))


def shown(shape: Sequence[int | None]) -> str:
    """A shape for people: (None, 3) is [?, 3]."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _named(record: Record, inputs: tuple[InputSpec, ...]) -> dict[str, Array]:
    known = [spec.name for spec in inputs]
    arrays = record.arrays
    if "" in arrays and "" not in known:
        if len(inputs) != 1:
            raise InputError(
                f"{record.file}: holds one unnamed array, the model has {len(inputs)} inputs",
                f"store the samples as .npz with the keys {', '.join(known)}",
            )
        arrays = {known[0]: arrays[""]}
    unknown = sorted(set(arrays) - set(known))
    if unknown:
        raise InputError(f"{record.file}: the model has no input '{unknown[0]}'", did_you_mean(unknown[0], known))
    missing = [f"'{name}'" for name in known if name not in arrays]
    if missing:
        raise InputError(f"{record.file}: input {', '.join(missing)} is missing", f"found: {_list(arrays)}")
    return arrays


def _list(arrays: dict[str, Array]) -> str:
    return ", ".join(sorted(arrays)) or "nothing"


def _checked(array: Any, spec: InputSpec, file: str) -> Any:
    where = f"{file}: input '{spec.name}'"
    if spec.kind != "tensor":
        return _checked_sequence(array, spec, where)
    if spec.dtype == "bfloat16" and array.dtype == np.float32:
        array = array.astype(spec.dtype)  # numpy has no such type, nor have its files
    if _dtype_name(array) != spec.dtype:
        raise InputError(
            f"{where} is {_dtype_name(array)}, the model takes {spec.dtype}",
            f"convert it where the samples are written: array.astype('{spec.dtype}')",
        )
    shaped = _with_batch(array, spec.shape)
    if spec.shape is not None and not fits(shaped.shape, spec.shape):
        raise InputError(f"{where} has shape {shown(array.shape)}, the model takes {shown(spec.shape)}")
    _check_finite(array, where)
    return shaped


def _checked_sequence(value: Any, spec: InputSpec, where: str) -> Any:
    """A list of tensors, or for an optional None or one of both."""
    if spec.kind == "optional" and value is None:
        return value
    if spec.kind == "sequence" and not isinstance(value, list):
        raise InputError(f"{where} is no sequence", "write it into a folder test_data_set_0, as onnx.SequenceProto")
    for tensor in value if isinstance(value, list) else [value]:
        if _dtype_name(tensor) != spec.dtype:
            raise InputError(f"{where} holds {_dtype_name(tensor)}, the model takes {spec.dtype}")
        _check_finite(tensor, where)
    return value


def _dtype_name(array: Array) -> str:
    return "string" if array.dtype.kind in "OUS" else array.dtype.name


def _with_batch(array: Array, wanted: tuple[int | None, ...] | None) -> Array:
    if wanted and len(wanted) == array.ndim + 1 and wanted[0] in (None, 1):
        return array[None]
    return array


def _check_finite(array: Array, where: str) -> None:
    if "float" not in array.dtype.name:
        return
    finite = np.isfinite(array.astype(np.float32) if array.dtype.kind == "V" else array)
    if finite.all():
        return
    index = np.unravel_index(int(np.argmin(finite)), array.shape)
    word = "NaN" if np.isnan(array[index]) else "Inf"
    raise InputError(
        f"{where} holds {word} at {shown([int(axis) for axis in index])}",
        "one such value would spoil every range; repair or leave out the sample",
    )
