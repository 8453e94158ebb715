"""What a user should hear about a result that is there, but disappoints."""

from __future__ import annotations

from collections.abc import Iterator

from qcli.node_costs import in_words
from qcli.plugins import create
from qcli.targets._support import traits_of
from qcli.types import Plan
from qcli.validate import Validation

_MOSTLY_FLOAT = 0.5

_POOR_DB = 10.0
"""Below this signal-to-noise ratio hardly any network does its work."""


def doubts(validation: Validation, plan: Plan, *, integers: bool = False) -> Iterator[str]:
    """Warnings: a result that is slower, larger or far from the float model, or float for the most part.

    `integers` says that integer kernels were asked for.

    How fast onnxruntime runs a model for another runtime, and on which kernels, is no reason to warn.
    """
    here = traits_of(create("targets", plan.target)).here
    yield from validation.warnings
    yield from slower(validation) if here else ()
    if validation.size.ratio > 1:
        yield f"the quantized model is larger than the float one ({validation.size.ratio:.2f}x): it has few weights"
    sqnr = validation.accuracy.sqnr
    if sqnr is not None and sqnr < _POOR_DB:
        yield f"the result is far from the float model ({sqnr:.1f} dB): try int8-dynamic or int8-weights"
    share = validation.kernels.integer_share
    multiplied = any(create("encodings", entry.encoding).multiplies for entry in plan.entries)
    if here and multiplied and share < _MOSTLY_FLOAT:
        yield f"only {share:.1%} of the work runs on integers; 'qcli plan' says why the rest stays float"
    elif here and integers and not multiplied:
        yield "no work runs on integers: this model's weights are only stored in fewer bits; 'qcli plan' says why"


def slower(validation: Validation) -> Iterator[str]:
    """A warning that the quantized model is slower, with the nodes to blame and the command that mends it."""
    if validation.latency is None or validation.latency.speedup >= 1:
        return
    text = f"the quantized model is slower than the float one ({validation.latency.speedup:.2f}x)"
    blame = f", above all at {in_words(validation.dearer)}" if validation.dearer else ""
    yield f"{text}{blame}: 'qcli tune MODEL -r RECIPE -d CALIB' finds what to keep in float"
