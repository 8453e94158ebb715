"""A few thousand damaged models, recipes, plans, statistics and samples: a result or a reason, and nothing else.

FUZZ_CASES and FUZZ_SEED choose others; what is printed for a bad case begins with the command that runs it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

SEED = int(os.environ.get("FUZZ_SEED", "20260101"))
CASES = int(os.environ.get("FUZZ_CASES", "2400"))
SHARDS = 4
SECONDS_A_CASE = 60


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_result_or_a_reason(tmp_path: Path, shard: int) -> None:
    """In a process of its own, which a crash of a library, or a case that does not end, takes down alone."""
    note, bad, first = tmp_path / "note", [], shard
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    while first < CASES:
        count = -(-(CASES - first) // SHARDS)
        options = [f"--seed={SEED}", f"--first={first}", f"--cases={count}", f"--step={SHARDS}", f"--note={note}"]
        command = [sys.executable, "-m", "fuzz", *options, f"--limit={SECONDS_A_CASE}"]
        done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)
        bad += done.stdout.splitlines()
        last = int(note.read_text())
        if done.returncode not in (0, 1) or done.stderr:
            bad.append(f"case {last} ended with {done.returncode}: {done.stderr[-2000:]}")
        first = last + SHARDS
    assert not bad, "\n".join([f"cd tests && python -m fuzz --seed {SEED} --cases 1 --debug --first CASE", *bad])
