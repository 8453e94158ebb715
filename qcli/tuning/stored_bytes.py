"""How many bytes the constants of parts take in a file."""

from __future__ import annotations

from collections.abc import Sequence

from qcli.graph import Model, Value, is_constant, node_key
from qcli.levels import code_bits
from qcli.plugins import choice_of
from qcli.scale_forms import scale_bits
from qcli.solve import Solved, site_key
from qcli.tuning.parts import Part
from qcli.types import Entry, Scale

_WIDTHS = (2, 4, 8, 16, 32)
"""Bits that codes are stored in."""


def float_bytes(model: Model) -> int:
    """Those of all constants as they are; what several nodes read counts once."""
    return sum({value: _size(value) for node in model.nodes() for value in node.inputs if is_constant(value)}.values())


def _size(value: Value | None) -> int:
    return 0 if value is None or value.const_value is None else int(value.const_value.nbytes)


def plan_bytes(model: Model, parts: Sequence[Part], solved: Solved | None) -> list[float]:
    """Those of each part under a plan, or as they are; what several parts read counts for each of them."""
    nodes = {node_key(node): node for node in model.nodes()}
    coded = {} if solved is None else _coded(solved)
    found: list[float] = []
    for part in parts:
        places = ((name, place) for name in part.names for place in range(len(nodes[name].inputs)))
        constants = [(name, place) for name, place in places if is_constant(nodes[name].inputs[place])]
        found.append(sum(coded.get(key, _size(nodes[key[0]].inputs[key[1]])) for key in constants))
    return found


def _coded(solved: Solved) -> dict[tuple[str, int], float]:
    """Bytes of codes and scales by node and operand."""
    codes, scales = solved.solution.codes, solved.solution.scales
    keyed = ((site_key(entry), entry) for entry in solved.plan.entries)
    return {
        (key[0], key[2]): _stored(entry, codes[key].size, scales[key]) * _bits(scales[key]) / 8 + _side(scales[key])
        for key, entry in keyed
        if key in codes
    }


def _stored(entry: Entry, codes: int, scale: Scale) -> int:
    """How many codes are stored: MatMulNBits fills up the last block of each column."""
    if choice_of(entry.encoding).name != "matmul_nbits" or scale.block is None:
        return codes
    return int(scale.scale.size) * scale.block


def _bits(scale: Scale) -> float:
    if scale.vectors is not None:
        return code_bits(len(scale.vectors.words))
    if scale.levels is not None:
        return code_bits(scale.levels.shape[-1])
    levels = scale.highest - scale.lowest + 1
    return next((width for width in _WIDTHS if 2**width >= levels), _WIDTHS[-1])


def _side(scale: Scale) -> float:
    steps = 0 if scale.levels is not None and (scale.scale == 1).all() else scale.scale.size
    table = 0 if scale.levels is None or scale.native is not None else scale.levels.size
    if scale.vectors is not None:
        return (steps * scale_bits(scale.form) + 16 * scale.vectors.words.size) / 8
    return (steps * scale_bits(scale.form) + 32 * table) / 8
