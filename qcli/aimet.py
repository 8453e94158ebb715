"""All scales of a quantized model as AIMET writes them: a JSON file that Qualcomm's converters and others take.

Version 1.0.0 has a list of tensors, 0.6.1 a mapping from tensors to one entry for each channel. In both, real = (code +
offset) * scale with codes from 0 to 2^bw - 1: signed codes are counted from their lowest level on, so a symmetric
grid of eight bits has the offset -128.

Source: AIMET, "Encoding Format Specification" (0.6.1 and 1.0.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from qcli.errors import UsageError
from qcli.granularity import is_unscaled
from qcli.levels import is_uniform
from qcli.plugins import choice_of
from qcli.solve import Solution, site_key
from qcli.types import Plan, Role, Scale

Version = Literal["1.0.0", "0.6.1"]


def refuse_blocks(plan: Plan, version: Version) -> None:
    """Raises UsageError for levels that are no integers, and for blocks, which version 0.6.1 has no form for."""
    weights = [entry for entry in plan.entries if entry.site.role is not Role.BIAS]
    other = next((entry for entry in weights if is_unscaled(entry.grid.format) or not is_uniform(entry.grid)), None)
    if other is not None:
        problem = f"files of encodings hold integers, and '{other.site.value}' gets {choice_of(other.grid.format).name}"
        raise UsageError(problem, "leave out --encodings, or take a recipe of integers")
    blocked = next((entry for entry in plan.entries if entry.grid.block is not None), None)
    if version == "0.6.1" and blocked is not None:
        problem = f"encodings of version 0.6.1 have no blocks, which '{blocked.site.value}' gets"
        raise UsageError(problem, "write version 1.0.0")


def encodings_json(plan: Plan, solution: Solution, version: Version = "1.0.0") -> bytes:
    """The encodings of all tensors of a plan, by their names in the prepared model, as JSON.

    `param_encodings` are weights, biases and other constants, `activation_encodings` all else. A tensor that is
    quantized in several ways has the encoding of its producer, or of its first reader. Weights that are places in a
    table are left out: the format has no form for them. Raises as `refuse_blocks`.
    """
    refuse_blocks(plan, version)
    found: dict[str, dict[str, _Encoding]] = {"activation_encodings": {}, "param_encodings": {}}
    for entry in sorted(plan.entries, key=lambda entry: entry.site.role is not Role.OUTPUT):
        if solution.scales[site_key(entry)].is_table:
            continue
        kind = "param_encodings" if site_key(entry) in solution.codes else "activation_encodings"
        found[kind].setdefault(entry.site.value, _Encoding.of(solution.scales[site_key(entry)], entry.grid.symmetric))
    document: dict[str, Any] = {"version": version}
    for kind, tensors in found.items():
        if version == "1.0.0":
            document[kind] = [_listed(name, encoding) for name, encoding in sorted(tensors.items())]
        else:
            document[kind] = {name: list(_by_channel(encoding)) for name, encoding in sorted(tensors.items())}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


class _Encoding(NamedTuple):
    """`offsets` and `scales` [channels], or of blocks in the order of their weight; `ends` are the real limits."""

    bits: int
    kind: str
    scales: list[float]
    offsets: list[int]
    ends: list[tuple[float, float]]
    block: int | None
    symmetric: bool

    @classmethod
    def of(cls, scale: Scale, symmetric: bool) -> _Encoding:
        bits = int(scale.highest - scale.lowest).bit_length()
        zero = scale.zero_point.reshape(-1)
        steps = scale.scale.reshape(-1).astype(np.float64)
        ends = zip((scale.lowest - zero) * steps, (scale.highest - zero) * steps, strict=True)
        kind = "PER_TENSOR" if scale.axis is None else "PER_CHANNEL" if scale.block is None else "PER_BLOCK"
        return cls(
            bits=bits,
            kind=kind,
            scales=[float(step) for step in steps],
            offsets=[scale.highest + 1 - (1 << bits) - int(one) for one in zero],
            ends=[(float(lower), float(upper)) for lower, upper in ends],
            block=scale.block,
            symmetric=symmetric,
        )


def _listed(name: str, encoding: _Encoding) -> dict[str, Any]:
    """An element of version 1.0.0."""
    block = {} if encoding.block is None else {"block_size": encoding.block}
    return {
        "name": name,
        "dtype": "INT",
        "bw": encoding.bits,
        "enc_type": encoding.kind,
        "is_sym": encoding.symmetric,
        "scale": encoding.scales,
        "offset": encoding.offsets,
        **block,
    }


def _by_channel(encoding: _Encoding) -> Iterator[dict[str, Any]]:
    """The elements of a tensor in version 0.6.1, whose truth values are words."""
    for step, offset, (lower, upper) in zip(encoding.scales, encoding.offsets, encoding.ends, strict=True):
        yield {
            "bitwidth": encoding.bits,
            "dtype": "int",
            "is_symmetric": str(encoding.symmetric),
            "max": upper,
            "min": lower,
            "offset": offset,
            "scale": step,
        }
