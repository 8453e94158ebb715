"""Which samples and outputs count as those of a language model."""

from __future__ import annotations

import numpy as np
import pytest

from qcli.metrics._tokens import Language, language_of
from qcli.types import Array

LOGITS = {"logits": np.zeros((1, 4, 10), np.float32)}
IDS = np.array([[1, 2, 3, 9]])
ONES = np.ones((1, 4), np.int64)


@pytest.mark.parametrize(
    ("feeds", "found"),
    [
        ({"input_ids": IDS}, "input_ids"),
        ({"attention_mask": ONES, "input_ids": IDS}, "input_ids"),
        ({"position_ids": ONES, "tokens": IDS}, "tokens"),
        ({"x": IDS.astype(np.int32)}, "x"),
        ({"x": IDS, "y": IDS}, None),
        ({"attention_mask": ONES}, None),
        ({"input_ids": IDS + 1}, None),
        ({"input_ids": IDS - 2}, None),
        ({"input_ids": IDS.astype(np.float32)}, None),
        ({"input_ids": IDS[0]}, None),
        ({"input_ids": IDS[:, :3]}, None),
        ({}, None),
    ],
)
def test_which_input_holds_tokens(feeds: dict[str, Array], found: str | None) -> None:
    assert language_of(feeds, LOGITS) == (None if found is None else Language(found, "logits"))


@pytest.mark.parametrize(
    "output", [np.zeros((1, 10), np.float32), np.zeros((1, 4, 10), np.int64), np.zeros((1, 5, 10), np.float32), [1]]
)
def test_which_outputs_are_no_logits(output: object) -> None:
    assert language_of({"input_ids": IDS}, {"y": output}) is None


def test_one_token_foretells_nothing() -> None:
    assert language_of({"input_ids": IDS[:, :1]}, {"y": np.zeros((1, 1, 10), np.float32)}) is None


def test_outputs_that_come_before_the_logits_are_passed_over() -> None:
    outputs = {"present": np.zeros((1, 2, 4, 8), np.float32), **LOGITS}
    assert language_of({"input_ids": IDS}, outputs) == Language("input_ids", "logits")


def test_what_the_attention_mask_hides_does_not_count() -> None:
    language = Language("input_ids", "logits")
    mask = np.array([[1, 1, 1, 1, 1, 0]])
    tokens, counted = language.of({"input_ids": IDS, "attention_mask": mask})
    np.testing.assert_array_equal(tokens, IDS)
    np.testing.assert_array_equal(counted, [[True, True, True, False]])
    for other in ({}, {"attention_mask": mask[:, :2]}, {"attention_mask": np.ones((1, 1, 4, 4))}):
        assert language.of({"input_ids": IDS, **other})[1].all()
