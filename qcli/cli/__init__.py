"""The command line: one file per command. Each parses, calls one public function and shows its result."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from qcli.cli import analyze, bench, calibrate, check, doctor, inspect, merge, plan, quantize, recipe, tune, validate
from qcli.cli._edge import guarded
from qcli.cli._screen import on_screen
from qcli.errors import UsageError, did_you_mean

_COMMANDS = (
    quantize.quantize,
    tune.tune,
    plan.plan,
    calibrate.calibrate,
    merge.merge,
    validate.validate,
    analyze.analyze,
    inspect.inspect,
    check.check,
    bench.bench,
    doctor.doctor,
)

_TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"
"""onnxruntime's wheels for Linux and macOS send usage data unless this is set before they are imported."""


class Group(TyperGroup):
    """Commands that answer a wrong word with the nearest right one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if not word.startswith("-") and self.get_command(ctx, word) is None:
            raise UsageError(f"no such command '{ctx.command_path} {word}'", did_you_mean(word, self.commands))
        return super().resolve_command(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # typer imports pydantic, 0.1 s, to find out that None is None
        return option


app = typer.Typer(
    name="qcli",
    cls=Group,
    help="Quantize ONNX models, and prove with onnxruntime what became of them.",
    add_completion=False,  # its two options would cost every start 0.1 s
    rich_markup_mode=None,  # its help takes twice as long to appear
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _work in _COMMANDS:
    app.command()(on_screen(_work))
app.add_typer(recipe.app, cls=Group, name="recipe")


def _show_version(wanted: bool) -> None:
    if wanted:
        from qcli import __version__

        typer.echo(f"qcli {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


_COLLECTED_AFTER = (10_000, 20, 100)
"""How often Python looks for garbage: graphs are many small objects, and going through all of them again takes time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program with `arguments` (sys.argv's by default) and returns its exit code."""
    os.environ.setdefault(_TELEMETRY_OFF, "1")
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    gc.set_threshold(*_COLLECTED_AFTER)
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]

    def work() -> int:
        returned = get_command(app).main(given, prog_name="qcli", standalone_mode=False)
        return returned if isinstance(returned, int) else 0

    return guarded(work, debug="--debug" in given)
