"""The README does what it says: its console blocks run, its Python runs, its tables are complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcli.recipe import load_recipe, preset_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

NOT_RUN = ("pip ", "python -m venv", "make ", "git ", "uv ")
"""Installing and the project's own targets, which run this very test."""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Step:
    """One command line, the exit status that the README promises, and the output that it shows."""

    command: str
    status: int
    shown: tuple[str, ...]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def steps(block: str) -> list[Step]:
    """Commands begin with `$ `, go on after a backslash, and end in `# exit 1` where they fail."""
    joined = re.sub(r"\\\n\s*>?\s*", "", block)
    found: list[Step] = []
    for line in joined.splitlines():
        if line.startswith("$ "):
            command, _, status = line[2:].partition("  # exit ")
            found.append(Step(command.strip(), int(status or 0), ()))
        elif line.strip() and found:
            last = found[-1]
            found[-1] = Step(last.command, last.status, (*last.shown, line))
    return found


CONSOLE = [(number, steps(block)) for number, block in enumerate(blocks("console"), 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout to someone who reads the README."""
    made = tmp_path_factory.mktemp("readme")
    if sys.platform == "win32":
        shutil.copytree(ROOT / "sample_models", made / "sample_models")
    else:
        (made / "sample_models").symlink_to(ROOT / "sample_models")
    (made / "out").mkdir()
    return made


def environment(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "QCLI_CACHE_DIR": str(folder / "cache")}
    return {**os.environ, **own, "COLUMNS": "120", "NO_COLOR": "1", "PYTHONUTF8": "1"}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    runnable = re.sub(r"^qcli\b", f'"{sys.executable}" -m qcli', command)
    return subprocess.run(
        runnable, shell=True, cwd=folder, env=environment(folder), capture_output=True, encoding="utf-8", check=False
    )


def test_there_is_something_to_run() -> None:
    assert sum(len(found) for _, found in CONSOLE) >= 4


@pytest.mark.skipif(sys.platform == "win32", reason="the blocks are written for a POSIX shell")
@pytest.mark.parametrize(("number", "found"), CONSOLE)
def test_console_block(number: int, found: list[Step], folder: Path) -> None:
    for step in found:
        if step.command.startswith(NOT_RUN):
            continue
        done = run(step.command, folder)
        assert done.returncode == step.status, f"{step.command}\n{done.stdout}{done.stderr}"
        missing = [line for line in step.shown if _shape(line) not in _shape(done.stdout + done.stderr)]
        assert not missing, f"{step.command} no longer prints {missing}, but\n{done.stdout}{done.stderr}"


def _shape(text: str) -> str:
    """Text without its figures, which differ from machine to machine, and with single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"[\d.,]*\d", "0", text)).strip()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block(block: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_in_the_table(preset: str) -> None:
    assert f"| `{preset}` |" in README, (
        f"the README's table of presets lacks {preset}: {load_recipe(preset).description}"
    )


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!https?:)[^)#]+)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_no_machine_is_named() -> None:
    assert not re.search(r"/(home|root|work|tmp|Users)/", README)
