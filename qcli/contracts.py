"""What a plug-in of each kind must do: the protocols that the folders implement.

A plug-in class is a frozen `msgspec.Struct`; its fields are its options, its methods are the behaviour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.types import Array, FloatArray, Grid, Interval, Noun, Scale

if TYPE_CHECKING:
    from qcli.distribution import Distribution


class InputSpec(Noun, frozen=True, kw_only=True):
    """One input of a model: `shape` holds None for a free dimension; `shape` None means unknown rank.

    `kind` is `tensor`, `sequence` (a list of tensors) or `optional` (a tensor or None); the last two have no shape.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    kind: str = "tensor"


class Record(Noun, frozen=True, kw_only=True):
    """What a reader found in one file: arrays by input name, as stored, not yet checked against the model.

    `label` is the class index where the file has one, `reference` the expected outputs where the file has them.
    An array under the name "" belongs to the only input of the model.
    """

    file: str
    arrays: dict[str, Array]
    label: int | None = None
    reference: dict[str, Array] = msgspec.field(default_factory=dict)


class SampleReader(Protocol):
    """Reads one kind of sample file. `claims` must not open the file."""

    def claims(self, path: Path) -> bool: ...

    def read(self, path: Path, inputs: tuple[InputSpec, ...]) -> Iterator[Record]:
        """The records of one file or sample folder, one at a time. Raises InputError that names the file."""
        ...


class Statistic(Protocol):
    """A commutative monoid over arrays: any order of `update` and `merge` gives the same `arrays`.

    A class variable `axis` says that a range needs it along that axis of a value, not of the value as a whole.
    """

    @classmethod
    def empty(cls) -> Self: ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self: ...

    def update(self, batch: FloatArray) -> None:
        """Takes in one batch of shape [channels, values] ([1, n] for a whole tensor)."""
        ...

    def merge(self, other: Self) -> None: ...

    def arrays(self) -> dict[str, Array]:
        """The state as named arrays, the file form of the statistic."""
        ...

    def distribution(self) -> Distribution:
        """The values seen, as far as this statistic knows them."""
        ...


class Range(Protocol):
    """Turns a distribution into the real interval that a grid should span.

    `statistic` names the statistic (in `qcli/stats`) whose distribution it needs; None for one that needs no samples.
    One with a true attribute `weighted` is for weights alone: their counts are the energies of the inputs they meet.
    A method `quick(values, grid)`, if it has one, finds the intervals [...] of runs along the first axis of `values`
    [size, ...] in little time: the blocks of large models.
    """

    statistic: ClassVar[str | None]

    def interval(self, distribution: Distribution, grid: Grid) -> Interval: ...


class Format(Protocol):
    """A number format: what its levels are and which type their codes have in QuantizeLinear.

    `min_opset` is the operator set from which QuantizeLinear takes it. One whose levels are not evenly spaced is a
    `TableFormat` (`qcli/formats/_table.py`), which has an attribute `uniform` that is false: integer kernels multiply
    none of its codes.
    """

    @property
    def dtype(self) -> str: ...

    @property
    def min_opset(self) -> int: ...

    def bits(self, grid: Grid) -> int:
        """The bits that a code of `grid` takes."""
        ...

    def scale(self, interval: Interval, grid: Grid) -> Scale:
        """The scale and zero point that span the interval. Zero is always representable."""
        ...

    def encode(self, values: FloatArray, scale: Scale) -> Array:
        """Codes of the scale's dtype for `values`, rounded to nearest even and saturated."""
        ...

    def decode(self, codes: Array, scale: Scale) -> FloatArray:
        """The real values of `codes`: (code - zero_point) * scale along the scale's axis."""
        ...


class Rounding(Protocol):
    """Chooses a level for every weight.

    One with a true attribute `elementwise` looks at each weight by itself: those of large models are rounded in pieces.
    """

    def round(self, weight: FloatArray, scale: Scale) -> Array:
        """Codes of the scale's dtype and the weight's shape."""
        ...


@runtime_checkable
class ScaleFitting(Protocol):
    """A rounding that changes the scale before it chooses levels."""

    def fitted(self, weight: FloatArray, scale: Scale) -> Scale:
        """Scales and zero points of the shapes that they have."""
        ...


class FinishingWork(Protocol):
    """A quantized model in the making, as finishing steps see it."""

    @property
    def samples(self) -> int:
        """How many calibration samples there are to learn from."""
        ...

    def correct_biases(self) -> bool:
        """Each bias takes in what its layer's output is off on average, layer after layer. False without samples."""
        ...

    def foretell_biases(self) -> bool:
        """The same without samples, where BatchNormalization says what a layer reads; False if it does nowhere."""
        ...

    def refine_ranges(self, factors: tuple[float, ...], limit: int) -> bool:
        """Activation ranges change by `factors` where the model's output gains; of `limit` values at most."""
        ...


def along(scale: Scale, shape: tuple[int, ...]) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """The steps and the zero points of `scale`, in shapes that broadcast against an array of `shape`.

    Example: for a weight [8, 64, 3, 3], 64 steps along axis 1 become [1, 64, 1, 1], a single step a scalar, and steps
    [8, 2, 3, 3] of blocks of 32 along axis 1 the whole [8, 64, 3, 3].
    """
    return _spread(scale.scale, scale, shape), _spread(scale.zero_point, scale, shape)


def _spread(vector: Array, scale: Scale, shape: tuple[int, ...]) -> Array:
    if scale.axis is None:
        return vector.reshape(())
    if scale.block is not None:
        return np.take(vector, np.arange(shape[scale.axis]) // scale.block, axis=scale.axis)
    sizes = [1] * len(shape)
    sizes[scale.axis] = -1
    return vector.reshape(sizes)
