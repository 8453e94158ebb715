"""Random models, quantized with every preset, compute what they computed.

Each seed is one model, the same on every machine. Others are a matter of time:
`python tests/test_differential.py 1000 2000` tries the seeds from 1000 to 1999 and prints what fails.
"""

from __future__ import annotations

import sys

import pytest
from differential import FLOORS, check
from random_parts import case_of, halved

from qcli.runtime import Session

SEEDS = 20
HALVES = 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_model_computes_what_it_computed(seed: int) -> None:
    case = case_of(seed)
    for preset in FLOORS:
        check(case, preset)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(HALVES))
def test_a_random_model_in_float16_computes_what_it_computed(seed: int) -> None:
    check(halved(case_of(seed)), "int8")


def test_a_seed_is_one_model() -> None:
    first, second = case_of(3), case_of(3)
    assert first.proto.SerializeToString(deterministic=True) == second.proto.SerializeToString(deterministic=True)


def test_models_run_with_other_batch_sizes_and_differ() -> None:
    cases = [case_of(seed) for seed in range(SEEDS)]
    for case in cases:
        for feeds in (*case.samples, *case.others):
            Session(case.proto.SerializeToString()).run(feeds)
    operators = {node.op_type for case in cases for node in case.proto.graph.node}
    assert {"Conv", "MatMul", "Gemm", "If", "Loop", "Scan", "Add", "Gather"} <= operators
    assert len({case.proto.opset_import[0].version for case in cases}) > 4


def main(first: int, last: int) -> int:
    """Tries seeds and prints what is wrong; the number of faults."""
    faults = 0
    for seed in range(first, last):
        case = case_of(seed)
        for preset in FLOORS:
            try:
                check(case, preset)
            except Exception as error:  # whatever it is, it is a fault
                faults += 1
                print(f"seed {seed}, {preset}: {type(error).__name__}: {error}")
    return faults


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]), int(sys.argv[2])), 1))
