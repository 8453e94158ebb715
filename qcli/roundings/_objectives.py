"""What the output of a layer loses by its codes, with its gradient: for linear layers and for others."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from qcli.roundings._learned import PatchSample
from qcli.roundings._quadratic import error_of
from qcli.roundings._rows import Answer, Float64Array, Rows
from qcli.types import Array, FloatArray

_FAR = 1e30
"""Beyond what products reach, and within what a float32 holds."""

_SAMPLED = 0.3
"""The part that the sample has in the error of a layer that is not linear."""


class Objective(Protocol):
    """The mean squared error of the output, in units of the rows and relative to the mean square of the inputs."""

    def gradient(self, wrong: FloatArray, turn: int) -> FloatArray:
        """The gradient [groups, R, K] where the weights err by `wrong` steps; `turn` counts the calls."""
        ...

    def error(self, codes: Float64Array) -> Float64Array:
        """Of each row, [groups, R], for codes [groups, R, K]."""
        ...


class Quadratic:
    """The error of a linear layer on all samples: (q - w) H (q - w)^T."""

    def __init__(self, rows: Rows, products: Float64Array) -> None:
        self._target = rows.target
        self._sizes, self._single_sizes = rows.sizes, rows.sizes.astype(np.float32)
        energy = np.einsum("gkk->g", products) / products.shape[-1]
        self._products = products / energy[:, None, None]
        self._single = self._products.astype(np.float32)

    def gradient(self, wrong: FloatArray, turn: int) -> FloatArray:
        return np.asarray((wrong * self._single_sizes) @ self._single * self._single_sizes, np.float32)

    def error(self, codes: Float64Array) -> Float64Array:
        return error_of(codes * self._sizes, self._target, self._products)


class Mixed:
    """Three parts of the error on the sample to seven parts of that of a linear layer on all samples.

    A thousand patches say too little about hundreds of weights: descending on them alone lowered the error on them to
    a half and raised that on other samples by a third. All samples together know nothing of the non-linearity, beside
    the share of patches on which a row's output follows its product at all.
    """

    def __init__(self, sampled: Sampled, quadratic: Quadratic) -> None:
        self._sampled = sampled
        self._quadratic = quadratic
        self._rest = (1 - _SAMPLED) * sampled.active()

    def gradient(self, wrong: FloatArray, turn: int) -> FloatArray:
        linear = self._quadratic.gradient(wrong, turn) * self._rest[..., None].astype(np.float32)
        return np.float32(_SAMPLED) * self._sampled.gradient(wrong, turn) + linear

    def error(self, codes: Float64Array) -> Float64Array:
        return _SAMPLED * self._sampled.error(codes) + self._rest * self._quadratic.error(codes)


class Sampled:
    """The error of f(product + bias) on a sample of patches: E |f(V x + b) - f(W x + b)|^2."""

    def __init__(self, rows: Rows, answer: Answer, sample: PatchSample, batch: int) -> None:
        self._target = rows.target
        self._sizes, self._single_sizes = rows.sizes, rows.sizes.astype(np.float32)
        self._answer = answer
        weights = sample.counts / sample.counts.mean()
        energy = np.einsum("gkn,n->g", np.square(sample.patches, dtype=np.float64), weights)
        energy = np.where(energy > 0, energy / (sample.patches.shape[1] * len(weights)), 1.0)
        self._patches = np.asarray(sample.patches / np.sqrt(energy)[:, None, None], np.float32)
        self._root = np.sqrt(energy)[:, None]
        self._weights = weights.astype(np.float32)
        bias, self._lower, self._upper = (
            np.asarray((vector / self._root)[..., None].clip(-_FAR, _FAR), np.float32)
            for vector in (answer.bias, answer.lower, answer.upper)
        )
        self._products: FloatArray = np.asarray(rows.target.astype(np.float32) @ self._patches + bias, np.float32)
        self._exact_response = self._response(self._products)[0]
        self._batch = min(batch, len(weights))
        self._batches = max(1, len(weights) // self._batch)

    def gradient(self, wrong: FloatArray, turn: int) -> FloatArray:
        begin = turn % self._batches * self._batch
        part = slice(begin, begin + self._batch)
        moved: FloatArray = np.asarray((wrong * self._single_sizes) @ self._patches[..., part], np.float32)
        moved += self._products[..., part]
        response, slopes = self._response(moved)
        error = response - self._exact_response[..., part]
        error *= slopes
        error *= self._weights[part] / np.float32(self._batch)
        return np.asarray(error @ np.swapaxes(self._patches[..., part], 1, 2) * self._single_sizes, np.float32)

    def active(self) -> Float64Array:
        """The share of the patches [groups, R] on which the output follows the product."""
        slopes = self._response(self._products)[1].astype(np.float32)
        return np.asarray(slopes**2 @ self._weights / self._weights.sum(), np.float64)

    def error(self, codes: Float64Array) -> Float64Array:
        apart = (codes * self._sizes - self._target).astype(np.float32)
        moved = np.asarray(self._products + apart @ self._patches, np.float32)
        wrong = np.square(self._response(moved)[0] - self._exact_response, dtype=np.float64)
        return np.asarray(wrong @ self._weights.astype(np.float64) / len(self._weights), np.float64)

    def _response(self, products: FloatArray) -> tuple[FloatArray, Array]:
        """f and its slope, both [groups, R, n]."""
        steep = np.float32(self._answer.slope)
        bent = products if steep == 1 else np.where(products < 0, products * steep, products)
        response = bent.clip(self._lower, self._upper)
        inside = response == bent
        return response, inside if steep == 1 else np.where(products < 0, steep, np.float32(1)) * inside
