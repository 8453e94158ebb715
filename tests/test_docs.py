"""Everything that a user can name is in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcli import plugins
from qcli.cli import app
from qcli.cli import recipe as recipe_command
from qcli.errors import QcliError
from qcli.recipe import preset_names

ROOT = Path(__file__).parent.parent
DOCS = (*sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("README.md"))
COMMANDS = sorted(
    [command.callback.__name__ for command in app.registered_commands if command.callback]
    + [f"recipe {command.name}" for command in recipe_command.app.registered_commands]
)
PLUGINS = [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]
CODES = sorted({0, 1, 70, 130, 143, *(kind.exit_code for kind in QcliError.__subclasses__())})


@pytest.fixture(scope="module")
def text() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in DOCS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(text: str, name: str) -> None:
    assert f"qcli {name}" in text


@pytest.mark.parametrize(("kind", "name"), PLUGINS, ids=[f"{kind}/{name}" for kind, name in PLUGINS])
def test_every_plug_in_is_documented(text: str, kind: str, name: str) -> None:
    assert f"`{name}`" in text, f"{kind}/{name}.py is mentioned nowhere in docs/*.md or README.md"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_documented(text: str, name: str) -> None:
    assert f"`{name}`" in text


def test_every_command_has_a_section() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = [line for line in page.splitlines() if line.startswith("## ")]
    names = {name.partition(" ")[0] for name in COMMANDS}
    assert {section.removeprefix("## ").strip("`") for section in sections} >= {f"qcli {name}" for name in names}


@pytest.mark.parametrize("code", CODES)
def test_every_exit_code_is_documented(code: int) -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    assert f"| {code} |" in page
