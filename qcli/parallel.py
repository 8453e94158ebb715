"""Work on many samples, of which few are in memory at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MOST_AT_ONCE = 4
"""Samples that run at the same time, which bounds the memory that they take together."""

FEW_AT_ONCE = 2
"""The same for parts of a weight that learn, each of which takes some twenty times its size."""


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """What `work` makes of each item, in their order; at most threads + 1 items and results are held.

    What is set for the caller's context, such as numpy's `errstate`, holds for the work too.
    """
    if threads <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(copy_context().run, work, item))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def in_parallel(work: Callable[[_Item], object], samples: Iterator[_Item], threads: int) -> Iterator[None]:
    """Runs `work` on every sample with at most threads + 1 samples in memory; yields as they finish."""
    if threads <= 1:
        for sample in samples:
            work(sample)
            yield
        return
    with ThreadPoolExecutor(threads) as pool:
        pending: set[Future[object]] = set()
        for sample in samples:
            pending.add(pool.submit(work, sample))
            if len(pending) > threads:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    yield
        for future in pending:
            future.result()
            yield
