"""Sections of the report about what was changed in the end: parts that went back to float, and the type computed in."""

from __future__ import annotations

from typing import Literal

from qcli.types import KeptFloat, Noun


class ReturnedPart(Noun, frozen=True, kw_only=True):
    """A layer with what its kernel swallows, and what became of it.

    `wider`: its weight has 8 bits in place of fewer; `float`: it computes in float, with its weight stored as integers;
    `untouched`: it is as it was in the float model.
    """

    node: str
    op: str
    nodes: tuple[str, ...]
    now: Literal["wider", "float", "untouched"]


class FallbackFacts(Noun, frozen=True, kw_only=True):
    """What went back so that a recipe's `fallback` is kept: `returned` parts of so many, None if none had to.

    Ratios (dB, worst output) and drops (of top-1, or the share of other first choices; None for what is no classifier)
    are those before anything went back and after, on `samples` calibration samples, which `held_out` says were not
    learned from. `met` is False if none of the plans that were `tried` keeps the limits.
    """

    met: bool
    returned: int
    of: int | None = None
    parts: tuple[ReturnedPart, ...] = ()
    sqnr_before: float | None = None
    sqnr_after: float | None = None
    drop_before: float | None = None
    drop_after: float | None = None
    samples: int
    held_out: bool
    tried: int

    @property
    def what(self) -> str:
        """What became of the parts, in words."""
        return _RETURNED[self.parts[0].now] if self.parts else ""


class ConversionFacts(Noun, frozen=True, kw_only=True):
    """What `convert` did: `nodes` compute in `to`, those under `kept_float` in float32, each with its reason.

    `samples` is the number of samples whose values were checked against the range of `to`, None if none was. `sqnr`
    (dB, worst output, on up to 64 of them) is that of a machine that computes in `to` against the float model: every
    value is rounded where it is stored. onnxruntime's CPU rounds less often.
    """

    to: str
    io: str
    nodes: int
    kept_float: tuple[KeptFloat, ...] = ()
    samples: int | None = None
    sqnr: float | None = None


_RETURNED = {"wider": "with weights of 8 bits", "float": "in float", "untouched": "in float, weights too"}
