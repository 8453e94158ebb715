"""Products of matrices in one thread: the same bits on any machine, and no threads that wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def single_threaded() -> Iterator[None]:
    """numpy's linear algebra uses one thread within. Work on samples is spread over threads as a whole instead."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
