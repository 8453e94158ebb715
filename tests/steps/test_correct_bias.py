"""`correct_bias` asks for what it needs."""

from __future__ import annotations

import pytest

from qcli.errors import UsageError
from qcli.plugins import create
from qcli.steps.correct_bias import CorrectBias


class Work:
    """Notes what was asked for."""

    def __init__(self, samples: int, able: bool) -> None:
        self.samples = samples
        self.asked: list[str] = []
        self._able = able

    def correct_biases(self) -> bool:
        self.asked.append("samples")
        return self._able

    def foretell_biases(self) -> bool:
        self.asked.append("batchnorm")
        return self._able


@pytest.mark.parametrize("able", [False, True])
@pytest.mark.parametrize(("samples", "asked"), [(0, "batchnorm"), (2, "samples"), (64, "samples")])
def test_samples_come_before_what_batchnorm_says(samples: int, asked: str, able: bool) -> None:
    work = Work(samples, able)
    assert CorrectBias().finish(work) is able
    assert work.asked == [asked]


def test_it_finishes_and_has_no_options() -> None:
    step = create("steps", "correct_bias")
    assert step.finishes and step.worth_db is None and not step.changes_precision
    with pytest.raises(UsageError):
        create("steps", {"correct_bias": {"strength": 1}})
