"""Weights some rows at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import normal

from qcli import pieces
from qcli.levels import is_uniform
from qcli.pieces import coded_pieces, row_slices
from qcli.plugins import create, names
from qcli.types import Array, Grid, Scale

GRIDS = [
    Grid(format="int4"),
    Grid(format="int8", granularity="channel", axis=0),
    Grid(format="int8", granularity="channel", axis=1),
    Grid(format="int4", granularity="block", block=6, axis=0),
    Grid(format="uint4", symmetric=False, granularity="block", block=6, axis=1),
    Grid(format="int16", granularity="block", block=5, axis=0),
]


@given(
    shape=st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple),
    axis=st.sampled_from([None, 0, 1]),
    block=st.integers(2, 40),
    elements=st.integers(1, 5000),
)
def test_slices_cover_the_rows_and_cut_neither_blocks_nor_bytes(
    shape: tuple[int, ...], axis: int | None, block: int, elements: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_ELEMENTS", elements)
        slices = row_slices(shape, axis, block)
    rows = np.concatenate([np.arange(shape[0])[some] for some in slices])
    np.testing.assert_array_equal(rows, np.arange(shape[0]))
    for some in slices[:-1]:
        assert (some.stop - some.start) % 8 == 0
        assert axis != 0 or some.stop % block == 0


def test_a_single_number_is_a_piece() -> None:
    assert row_slices((), None, None) == [slice(None)]
    scale = scale_of(np.array([2.0], np.float32), Grid(format="int8"))
    [codes] = coded_pieces(lambda: np.array(1.0, np.float32), scale, create("roundings", "nearest").round, 2, np.copy)
    assert codes.shape == () and codes == 64


def scale_of(weight: Array, grid: Grid) -> Scale:
    from qcli.blocks import interval_of

    find = create("ranges", "minmax").interval
    interval, _ = interval_of(weight, grid, lambda part: find(part, grid))
    scale: Scale = create("formats", grid.format).scale(interval, grid)
    return scale


@settings(deadline=None)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("turned", [False, True])
@given(rows=st.integers(1, 70), columns=st.integers(1, 20), threads=st.integers(1, 3))
def test_codes_in_pieces_are_those_of_the_whole(
    grid: Grid, turned: bool, rows: int, columns: int, threads: int
) -> None:
    weight = normal(rows, rows, columns)
    scale, encode = scale_of(weight, grid), create("roundings", "nearest").round
    given_ = np.asfortranarray(weight) if turned else weight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_ELEMENTS", 100)
        found = list(coded_pieces(lambda: given_, scale, encode, threads, np.copy))
    assert all(piece.size % 8 == 0 for piece in found[:-1])
    np.testing.assert_array_equal(np.concatenate([piece.ravel() for piece in found]), encode(weight, scale).ravel())


@pytest.mark.parametrize(
    "name", [name for name in names("roundings") if getattr(create("roundings", name), "elementwise", False)]
)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_rounding_that_says_so_looks_at_each_weight_by_itself(name: str, grid: Grid) -> None:
    weight = normal(0, 48, 12)
    scale, encode = scale_of(weight, grid), create("roundings", name).round
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_ELEMENTS", 1)
        found = list(coded_pieces(lambda: weight, scale, encode, 2, np.copy))
    assert len(found) > 1
    np.testing.assert_array_equal(np.concatenate(found), encode(weight, scale))


def test_tables_of_levels_go_with_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row with levels of its own."""
    grid = Grid(format="codebook", granularity="channel", axis=0)
    assert not is_uniform(grid)
    weight = normal(0, 40, 16)
    levels = np.sort(normal(1, 40, 4), axis=1)
    scale = Scale(
        scale=np.ones(40, np.float32), zero_point=np.zeros(40, np.int64), axis=0,
        lowest=0, highest=3, dtype="uint8", levels=levels,
    )  # fmt: skip
    encode = create("roundings", "nearest").round
    monkeypatch.setattr(pieces, "_ELEMENTS", 128)
    found = list(coded_pieces(lambda: weight, scale, encode, 2, np.copy))
    assert len(found) == 5
    np.testing.assert_array_equal(np.concatenate(found), encode(weight, scale))
