"""What a user should hear about a result that is there, but disappoints."""

from __future__ import annotations

from collections.abc import Iterator

from qcli.node_costs import in_words
from qcli.plugins import create
from qcli.suitability import of_small_floats
from qcli.targets._support import traits_of
from qcli.types import Plan, Role
from qcli.validate import Validation

_MOSTLY_FLOAT = 0.5

_NO_KERNEL = "onnxruntime's CPU provider multiplies none; for its speed store weights alone, as the preset fp8 does"

_HARDLY_SMALLER = 0.8
"""Of the float model's size: weights of 16 bits leave half of it."""

_POOR_DB = 10.0
"""Below this signal-to-noise ratio hardly any network does its work."""

_AS_FAST = 0.98
"""Two timings of one model in turn differ by that much."""


def doubts(validation: Validation, plan: Plan, *, integers: bool = False) -> Iterator[str]:
    """Warnings: a result that is slower, larger or far from the float model, or float for the most part.

    `integers` says that integer kernels were asked for. How fast onnxruntime runs a model for another runtime, and on
    which kernels, is no reason to warn.
    """
    here = traits_of(create("targets", plan.target)).here
    floats = set(of_small_floats(plan.entries))
    multiplied = any(
        create("encodings", entry.encoding).multiplies and entry.site.node not in floats
        for entry in plan.entries
        if entry.site.role is Role.WEIGHT
    )
    yield from validation.warnings
    yield from slower(validation, multiplied) if here else ()
    yield from _hardly_smaller(validation.size.ratio, plan)
    sqnr = validation.accuracy.sqnr
    if sqnr is not None and sqnr < _POOR_DB:
        advice = "try int8-dynamic or int8-weights" if here else "'qcli analyze' shows which nodes cost most"
        yield f"the result is far from the float model ({sqnr:.1f} dB): {advice}"
    if not here:
        return
    share = validation.kernels.integer_share
    if floats:
        yield f"{len(floats)} layers have floats of 8 bits around them and compute in float: {_NO_KERNEL}"
    if multiplied and share < _MOSTLY_FLOAT:
        yield f"only {share:.1%} of the work runs on integers; 'qcli plan' says why the rest stays float"
    elif integers and not multiplied and not floats:
        yield "no work runs on integers: this model's weights are only stored in fewer bits; 'qcli plan' says why"


def _hardly_smaller(ratio: float, plan: Plan) -> Iterator[str]:
    """A file that has not shrunk: because there is not much to shrink, or because weights stay as they are."""
    coded = any(entry.site.role is Role.WEIGHT for entry in plan.entries)
    if ratio > 1:
        why = "it has few weights" if coded or not plan.entries else "none of its weights has fewer bits"
        yield f"the quantized model is larger than the float one ({ratio:.2f}x): {why}"
    elif ratio > _HARDLY_SMALLER and plan.entries:
        yield f"the quantized model is hardly smaller than the float one ({ratio:.2f}x): 'qcli plan' says what stays"


def slower(validation: Validation, multiplied: bool = True) -> Iterator[str]:
    """A warning that the quantized model is slower, with the nodes to blame and the command that mends it.

    If nothing is `multiplied` in integers, weights are only stored in fewer bits and their decoding is to blame.
    """
    if validation.latency is None or validation.latency.speedup >= _AS_FAST:
        return
    text = f"the quantized model is slower than the float one ({validation.latency.speedup:.2f}x)"
    blame = f", above all at {in_words(validation.dearer)}" if validation.dearer else ""
    mended = "'qcli tune MODEL -r RECIPE -d CALIB' finds what to keep in float"
    stored = "weights that are only stored save bytes, not time, and 'decode: run' decodes them in every run"
    yield f"{text}{blame}: {mended if multiplied else stored}"
