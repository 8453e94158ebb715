"""Layers to round, as rows over measured inputs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from qcli.roundings._quadratic import damped, error_of, nearest
from qcli.roundings._rows import Rows

Float64Array = npt.NDArray[np.float64]

INPUTS = ("independent", "alike", "dead", "constant", "single", "all dead", "huge", "tiny")
"""What the inputs of a layer are like."""


@dataclass(frozen=True)
class Measured:
    """The moments of patches [groups, K, P]."""

    patches: Float64Array

    def moments(self) -> tuple[Float64Array, Float64Array]:
        products = self.patches @ np.swapaxes(self.patches, 1, 2) / self.patches.shape[2]
        return products, self.patches.mean(axis=2)


@dataclass(frozen=True)
class Case:
    rows: Rows
    measured: Measured

    def products(self, damp: float = 0.01) -> Float64Array:
        return damped(self.measured.moments()[0], damp)

    def error(self, codes: Float64Array) -> float:
        return float(self.errors(codes).sum())

    def errors(self, codes: Float64Array) -> Float64Array:
        """Of each row, [groups, R]."""
        return error_of(codes * self.rows.sizes, self.rows.target, self.products())

    def nearest(self) -> Float64Array:
        return nearest(self.rows)

    def optimum(self, row: int) -> float:
        """The least error of one row of the first group, of all codes that there are."""
        levels = range(int(self.rows.lowest[0, row, 0]), int(self.rows.highest[0, row, 0]) + 1)
        every = np.array(list(product(levels, repeat=self.rows.exact.shape[2])), np.float64)
        return float(error_of(every[None], self.rows.exact[:1, row : row + 1], self.products()[:1]).min())

    def assert_codes(self, codes: Float64Array) -> None:
        assert codes.shape == self.rows.exact.shape and codes.dtype == np.float64
        assert np.array_equal(codes, np.rint(codes)), "codes are whole numbers"
        assert (codes >= self.rows.lowest).all() and (codes <= self.rows.highest).all()


def case(
    seed: int, kind: str = "alike", shape: tuple[int, int, int] = (1, 3, 4), bits: int = 4, block: int | None = None
) -> Case:
    """`shape` is groups, rows, inputs; some weights lie outside of what the codes reach.

    With `block`, so many inputs have a step and a zero point of their own in each row.
    """
    generator = np.random.default_rng(seed)
    groups, rows, size = shape
    half = 2 ** (bits - 1)
    exact = generator.uniform(-1.1 * half, 1.1 * half, (groups, rows, size))
    lowest = np.full((groups, rows, 1), -half, np.float64) + (np.arange(rows)[:, None] % 2)  # zero points differ
    steps = np.ones((1, 1, 1))
    if block is not None:
        runs = -(-size // block)
        lowest = np.repeat(lowest + generator.integers(0, 2, (groups, rows, runs)), block, axis=2)[..., :size]
        steps = np.repeat(generator.uniform(0.2, 1.0, (groups, rows, runs)), block, axis=2)[..., :size]
    made = Rows(exact=exact, lowest=lowest, highest=lowest + 2 * half - 1, sizes=steps)
    return Case(made, Measured(_patches(generator, kind, (groups, size))))


def _patches(generator: np.random.Generator, kind: str, shape: tuple[int, int]) -> Float64Array:
    groups, size = shape
    patches = generator.standard_normal((groups, size, 1 if kind == "single" else 60))
    if kind == "alike":
        patches = patches * 0.3 + generator.standard_normal((groups, 1, 60))
    if kind == "dead":
        patches[:, ::2] = 0
    if kind == "constant":
        patches = np.broadcast_to(patches[..., :1], patches.shape)
    if kind == "all dead":
        patches = patches * 0
    return np.asarray(patches * {"huge": 1e25, "tiny": 1e-25}.get(kind, 1.0))


CASES = st.builds(
    case,
    st.integers(0, 9999),
    st.sampled_from(INPUTS),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)),
    st.integers(2, 8),
    st.sampled_from((None, None, 1, 3, 9)),
)
