"""The nouns: frozen, serialisable values that travel between the stages.

Shapes in this module use None for a dimension that is only known when samples are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
"""A float32 array of any shape."""

Array = npt.NDArray[Any]
"""An array of any dtype and shape."""


@dataclass(frozen=True, eq=False)
class Deferred:
    """An array that is computed each time it is needed and kept by nobody.

    `pieces`, where it is known, gives what a function makes of the elements, some at a time and in order, perhaps on
    several threads. It sees integers of 8 bits or more, a multiple of eight of them in each piece but the last.
    """

    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Array]
    pieces: Callable[[Callable[[Array], Array]], Iterator[Array]] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def T(self) -> Array:  # noqa: N802 - as numpy calls it
        return self.make().T

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.make(), dtype=dtype) if copy else np.asarray(self.make(), dtype=dtype)


class Runnable(NamedTuple):
    """What a session needs of a model in memory.

    `folder` is where the external data lies that `content` names, `arrays` are weights that neither of them holds.
    """

    content: bytes
    folder: str = ""
    arrays: Mapping[str, Array] = {}


class Noun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every noun: frozen, keyword-only, strict about unknown keys."""


class Role(StrEnum):
    """What a tensor is to the node that it belongs to."""

    INPUT = "input"
    WEIGHT = "weight"
    BIAS = "bias"
    OUTPUT = "output"


Spec = str | dict[str, dict[str, Any] | None]
"""A plug-in as written in a recipe: `mse` or `{percentile: {keep: 99.9}}`."""


class Choice(Noun, frozen=True, kw_only=True):
    """A plug-in by name, with its options."""

    name: str
    options: dict[str, Any] = {}


class ScaleCodes(Noun, frozen=True, kw_only=True):
    """Scales that are integers themselves: `bits` each, and one float32 for each run of `group` blocks of a row.

    real scale = code * unit. Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3
    (double quantization), there with floats of 8 bits.
    """

    bits: Literal[4, 8] = 8
    group: Annotated[int, msgspec.Meta(ge=2, le=65536)] = 16


ScaleForm = Literal["float32", "float16"] | ScaleCodes
"""How the scales of blocks are stored."""


class Grid(Noun, frozen=True, kw_only=True):
    """The representable numbers without a scale.

    `granularity` is `tensor` (one scale), `channel` (one scale for each slice along the operator's own
    channel axis, which the plan fills in as `axis`) or `block` (one scale for each run of `block` weights along the
    axis that the operator sums over, which becomes `axis`). `bits` below the format's width restricts the levels
    (int8 with 4 bits is int4). `narrow` drops the lowest level so that a symmetric grid is symmetric. `scales` says how
    the scales of blocks are stored; those of channels are always float32.

    Example: a Conv weight [64, 3, 7, 7] with granularity `channel` has axis 0 and a scale of shape [64]; a MatMul
    weight [384, 10] in blocks of 32 has axis 0 and a scale of shape [12, 10].
    """

    format: Spec = "int8"
    symmetric: bool = True
    granularity: str = "tensor"
    block: int | None = None
    axis: int | None = None
    bits: int | None = None
    narrow: bool = False
    scales: ScaleForm = "float32"


class Site(Noun, frozen=True, kw_only=True):
    """A place that a grid can attach to.

    `graph` is the path of the If/Loop body ("" for the main graph). `node` is the name of the node's first
    output, since node names can be empty or repeat; `name` is the node's original name, which recipes match.
    """

    graph: str = ""
    value: str
    role: Role
    node: str
    name: str
    op: str
    operand: int
    shape: tuple[int | None, ...] | None = None
    dtype: str = "float32"


class Entry(Noun, frozen=True, kw_only=True):
    """One decision: this site gets this grid, by this rule."""

    site: Site
    grid: Grid
    range: Spec
    rounding: Spec = "nearest"
    encoding: Spec = "qdq"
    because: str


class Match(Noun, frozen=True, kw_only=True):
    """Which sites a rule is about; what is left out matches everything.

    `name` and `value` are globs over original node names and over tensor names. `role` input covers every
    activation that a quantized node reads or writes, `output` only those it writes. `from` and `to` (node
    names) enclose the region of nodes that lie on a path between them. `smallest` (0 to 1) means the nodes with the
    smallest weights, as many as together hold at most this share of the weights of all Conv, ConvTranspose, Gemm and
    MatMul: those whose bits cost nothing.
    """

    op: str | tuple[str, ...] | None = None
    name: str | tuple[str, ...] | None = None
    role: Role | tuple[Role, ...] | None = None
    value: str | tuple[str, ...] | None = None
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    smallest: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Rule(Noun, frozen=True, kw_only=True):
    """What a recipe says about the sites it matches. Of several rules the last one that says something counts."""

    match: Match = Match()
    grid: Grid | None = None
    range: Spec | None = None
    rounding: Spec | None = None
    encoding: Spec | None = None
    keep: Literal["float"] | None = None


class Tie(Noun, frozen=True, kw_only=True):
    """Values that share one scale, e.g. the input and the output of a MaxPool; `node` ties them."""

    values: tuple[str, ...]
    because: str
    node: str = ""


class KeptFloat(Noun, frozen=True, kw_only=True):
    """A node with work to do that stays float, and why."""

    node: str
    name: str
    op: str
    reason: str


class Plan(Noun, frozen=True, kw_only=True):
    """What will be quantized, how, and because of which rule, before one node is touched."""

    version: int = 1
    model_sha256: str
    target: Spec
    opset: int
    entries: tuple[Entry, ...]
    ties: tuple[Tie, ...] = ()
    kept_float: tuple[KeptFloat, ...] = ()


class Window(Noun, frozen=True, kw_only=True):
    """How a layer reads its input: which elements meet its weights in one product.

    A convolution [N, C, ...] reads patches of `kernel` elements a channel at distances of `dilations`, every
    `strides`, of an input with `pads` (all begins, then all ends) or padded by `auto_pad`. A transposed one is a
    convolution with stride 1 of its input with `spread` - 1 zeros between elements. A matrix product reads vectors
    along the last axis: its `kernel` is empty. The elements are split into `groups`, those of each group further into
    `blocks`, which are taken to be independent.

    Example: a 3x3 convolution of 64 channels reads patches of 576 elements.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = ""
    spread: tuple[int, ...] = ()
    groups: int = 1
    blocks: int = 1


class Request(Noun, frozen=True, kw_only=True):
    """One statistic of one value. Equal requests are measured once.

    `axis` None measures the tensor as a whole, otherwise each slice along that axis on its own. With a `window`, what
    is measured are the patches that a layer reads.
    """

    value: str
    statistic: str
    axis: int | None = None
    window: Window | None = None

    @property
    def key(self) -> str:
        read = "" if self.window is None else f"|{msgspec.json.encode(self.window).decode()}"
        return f"{self.value}|{self.statistic}|{'' if self.axis is None else self.axis}{read}"


class Interval(Noun, frozen=True, kw_only=True):
    """Real ranges to be represented: `lower` and `upper` float64, shape [channels] ([1] per tensor)."""

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]


class Vectors(Noun, frozen=True, kw_only=True):
    """Codewords that stand for several weights at once: a weight of `shape` as rows of vectors.

    `words` float32 [K, D]. The weight with axis `rows` first and the others flattened behind it is cut into vectors of
    D; the last one of a row is filled up. So there are codes [shape[rows], n], n = ceil(size of a row / D). Where
    errors do not all count alike, `counts` float32 [1 or shape[rows], n, D] says how much, 0 for what fills up.

    Example: a Conv weight [64, 32, 3, 3] with rows along axis 0 and D = 4 has codes [64, 72].
    """

    words: FloatArray
    rows: int
    shape: tuple[int, ...]
    counts: FloatArray | None = None

    @property
    def dimensions(self) -> int:
        return int(self.words.shape[1])

    @property
    def row_size(self) -> int:
        """The weights of a row."""
        return prod(self.shape) // self.shape[self.rows]

    @property
    def codes_shape(self) -> tuple[int, int]:
        return self.shape[self.rows], -(-self.row_size // self.dimensions)


class Scale(Noun, frozen=True, kw_only=True):
    """A grid made concrete: real = (code - zero_point) * scale, or levels[code] * scale where there are `levels`.

    `scale` float32 and `zero_point` int64, both of shape [channels] ([1] with `axis` None). With `block`, both have the
    shape of the weight except along `axis`, where one number stands for each run of `block` weights; the last run may
    be shorter, as in DequantizeLinear of operator set 21. Where `form` stores scales as codes, `units` is what these
    are multiplied by, with the shape of the scale except along `axis`, where one number stands for each group.

    `levels` float32, ascending, are a table of any numbers: [K] for all codes, or [*scale.shape, K], one table for each
    scale. The zero points are 0 then, and so is the scale of what is all zero. `native` is ONNX's type of which the
    levels are the numbers, as in `FLOAT8E4M3FN`, if there is one. With `vectors` a code stands for several weights, so
    that codes have a shape of their own; what it stands for is multiplied by the scale, which is that of the weight.

    Example: a Conv weight [64, 32, 3, 3] with one table of 16 entries and a scale for each channel has levels [16] and
    scale [64]; with a table for each channel, levels [64, 16].
    """

    scale: FloatArray
    zero_point: npt.NDArray[np.int64]
    axis: int | None = None
    block: int | None = None
    lowest: int
    highest: int
    dtype: str
    form: ScaleForm = "float32"
    units: FloatArray | None = None
    levels: FloatArray | None = None
    native: str | None = None
    vectors: Vectors | None = None

    @property
    def is_table(self) -> bool:
        """True where codes are places in a table, of levels or of codewords."""
        return self.levels is not None or self.vectors is not None

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the codes of a weight of `shape`: its own, but for vectors."""
        return shape if self.vectors is None else self.vectors.codes_shape
