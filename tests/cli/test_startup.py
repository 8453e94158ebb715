"""Help is instant: it imports none of the libraries that the work needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cli.conftest import Run
from qcli.cli import app

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "numpy", "msgspec", "yaml", "rich", "pydantic", "PIL")

COMMANDS = [
    "quantize",
    "plan",
    "calibrate",
    "merge",
    "validate",
    "tune",
    "analyze",
    "inspect",
    "check",
    "bench",
    "doctor",
]
RECIPE_COMMANDS = ["list", "show", "check", "schema", "init"]

_PROGRAM = """
import sys
import time
start = time.process_time()
from qcli.cli import main
codes = [main([*words.split(), "--help"]) for words in sys.argv[1].split(",")]
print(codes, file=sys.stderr)
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


def _python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_help_imports_nothing_heavy() -> None:
    all_words = ["", *COMMANDS, "recipe", *(f"recipe {name}" for name in RECIPE_COMMANDS)]
    done = _python(_PROGRAM.format(heavy=HEAVY), ",".join(all_words))
    codes, heavy = done.stderr.splitlines()
    assert codes == str([0] * len(all_words))
    assert heavy == "[]"


def test_help_is_fast() -> None:
    """Processor time, the least of three, since tests run beside each other."""
    program = "import time; from qcli.cli import main; main(['quantize', '--help']); print(time.process_time())"
    seconds = min(float(_python(program).stdout.splitlines()[-1]) for _ in range(3))
    assert seconds < 0.3


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = _python(f"import sys, qcli; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert done.stdout == "[]\n"


def test_every_command_is_listed_above() -> None:
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == set(COMMANDS)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_the_overview(run: Run, words: list[str]) -> None:
    outcome = run(*words)
    assert (outcome.code, outcome.err) == (0, "")
    for name in [*COMMANDS, "recipe"]:
        assert f"  {name} " in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options(run: Run, name: str) -> None:
    outcome = run(name, "-h")
    for option in ("--json", "-q, --quiet", "-v, --verbose", "--debug", "-h, --help"):
        assert option in outcome.out


def test_the_version(run: Run) -> None:
    outcome = run("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("qcli ")
