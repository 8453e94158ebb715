"""What an analysis is asked for and what it says."""

from __future__ import annotations

from typing import Literal

from qcli.job import QuantizeJob
from qcli.report import Environment, FileFacts, RecipeFacts
from qcli.types import Noun

GROUPINGS = ("node", "op", "block")

Blame = Literal["weights", "activations", "both", "neither"]


class AnalyzeJob(QuantizeJob, frozen=True, kw_only=True):
    """What `qcli analyze` can be told, beside what it has in common with `qcli quantize`.

    `by` is node, op or block. `compared` is the number of samples that the variants run on: of `evaluation`, or without
    one of the calibration samples. `suggest` off leaves the suggestions out. `top` is how many rows a Markdown report
    shows; the others hold all.
    """

    by: str = "node"
    compared: int = 8
    suggest: bool = True
    top: int | None = None


class Whole(Noun, frozen=True, kw_only=True):
    """Signal-to-quantization-noise ratios in dB of the model's worst output, against the float model.

    `float_check` is the model after its steps with nothing quantized. `quantized` is the result as onnxruntime runs it,
    integer kernels included; `simulated` is the same with float operators between the grids, to which all figures of
    parts belong. `weights_only` and `activations_only` quantize those alone; None where there are none.
    """

    float_check: float
    quantized: float
    simulated: float
    weights_only: float | None
    activations_only: float | None


class Row(Noun, frozen=True, kw_only=True):
    """One node, operator or block that is quantized, with ratios in dB.

    `output`: its own result in the quantized model against float, all noise from before it included; None where no
    sample reached it. `alone`, `weights`, `activations`: the model's output when only this, only its weights, only its
    activations are quantized. `gain`: by how much the quantized model gets better when only this is float. `share`: its
    part of the noise power of all rows, each quantized alone.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    graph: str = ""
    values: tuple[str, ...] = ()
    output: float | None
    alone: float
    weights: float | None
    activations: float | None
    gain: float
    share: float


class Suggestion(Noun, frozen=True, kw_only=True):
    """A change of the recipe that was tried: the model was made again with it and run by onnxruntime.

    `yaml` are lines to be pasted: items of `rules`, or a key of its own. `sqnr` is the ratio in dB that the result has
    with it, `gain` what that is more. `floats` counts the nodes that are then float and were not.
    """

    why: str
    yaml: str
    sqnr: float
    gain: float
    floats: int = 0


class AnalysisSamples(Noun, frozen=True, kw_only=True):
    """How many samples the ranges were learned from, and how many the variants ran on."""

    calibration: int | None
    compared: int


class Analysis(Noun, frozen=True, kw_only=True):
    """Where a quantized model loses accuracy: the whole, its parts from the worst to the best, and what would help."""

    schema: int = 1
    command: str = "analyze"
    model: FileFacts
    recipe: RecipeFacts
    samples: AnalysisSamples
    by: str
    whole: Whole
    blame: Blame
    rows: tuple[Row, ...]
    suggestions: tuple[Suggestion, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Environment
