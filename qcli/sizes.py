"""What a model weighs, on the disk and in memory: parts of the report, whose keys are public API."""

from __future__ import annotations

import msgspec

from qcli.types import Noun


class BytesBy(Noun, frozen=True, kw_only=True):
    """The bytes of a model and its external data: together they are all of them, each in one place.

    `weights` are by the format that they are stored in. `tables` are what codes are numbers of entries in. `other` are
    constants that are none of these, such as gains, masks and shapes. `graph` is everything that is no data of a
    constant: nodes, names and shapes. `padding` are the bytes of external files that no constant uses.
    """

    weights: dict[str, int]
    scales: int
    zero_points: int
    tables: int
    biases: int
    other: int
    graph: int
    padding: int


class Storage(Noun, frozen=True, kw_only=True):
    """What a model file stores.

    `weights` counts them. `bits_per_weight` = 8 * bytes of weights, their scales, zero points and tables / `weights`;
    null for a model without weights. `external_bytes` lie outside of the model file.
    """

    bytes_by: BytesBy
    weights: int
    bits_per_weight: float | None
    external_bytes: int


class MemoryFacts(Noun, frozen=True, kw_only=True):
    """Resident memory in 10^6 bytes of a process that does nothing but run a model.

    `base_mb` was there before it loaded the model, `loaded_mb` is what loading added and kept, `peak_mb` the most that
    there ever was, the base included.
    """

    base_mb: float
    loaded_mb: float | None
    peak_mb: float


class BothMemories(Noun, frozen=True, kw_only=True):
    """What the float and the compressed model take; null where the system does not tell."""

    float_: MemoryFacts | None = msgspec.field(name="float", default=None)
    compressed: MemoryFacts | None = None


def in_words(memory: MemoryFacts) -> str:
    """What a model takes, in a line."""
    kept = "" if memory.loaded_mb is None else f"{memory.loaded_mb:.1f} MB after loading, "
    return f"{kept}{memory.peak_mb - memory.base_mb:.1f} MB at most, beside {memory.base_mb:.0f} MB of the process"
