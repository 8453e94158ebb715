"""Samples side by side: in order, few at a time, and failures where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcli.parallel import in_order


@given(items=st.lists(st.integers(), max_size=30), threads=st.integers(0, 5))
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int) -> None:
    assert list(in_order(lambda item: item * item, items, threads)) == [item * item for item in items]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_few_items_are_held(threads: int) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(40):
            drawn.append(number)
            yield number

    for done, result in enumerate(in_order(lambda item: item, items(), threads)):
        assert result == done
        assert len(drawn) <= done + threads + 1


def test_work_overlaps() -> None:
    meeting = threading.Barrier(2, timeout=30)
    assert len(list(in_order(lambda _: meeting.wait(), range(8), 2))) == 8, "each waits for another one"


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_failure_ends_it(threads: int) -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item in (5, 6):
            raise ValueError(str(item))
        done.append(item)
        return item

    results = in_order(work, range(1000), threads)
    with pytest.raises(ValueError, match="5"):
        list(results)
    assert len(done) <= 5 + threads + 1


def test_who_stops_listening_is_not_kept_waiting() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        return item

    results = in_order(work, range(1000), 2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4


@pytest.mark.parametrize("threads", [1, 2])
def test_the_work_sees_the_context_of_its_caller(threads: int) -> None:
    with np.errstate(divide="ignore"):
        assert list(in_order(lambda item: np.float32(item) / np.float32(0), [1, 2, 3], threads)) == [np.inf] * 3
