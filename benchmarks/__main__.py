"""`python -m benchmarks`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from benchmarks.subjects import ZOO_VARIABLE, chosen_subjects, required_zoo, sampled_subjects, subject, zoo_folder
from qcli.errors import QcliError
from qcli.files import check_writable, replace_file
from qcli.report import encode_report

app = typer.Typer(
    help="Measure qcli beside onnxruntime's own quantizer.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_WIDTH = 160

_ZOO_HELP = f"A folder of models, one folder each; also from {ZOO_VARIABLE}."
ZooOption = Annotated[Path | None, typer.Option("--zoo", metavar="DIR", help=_ZOO_HELP, show_default=False)]
ModelsOption = Annotated[
    str | None,
    typer.Option("--models", metavar="A,B", help="Only these, comma-separated.", show_default=False),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write all figures there.", show_default=False),
]


@app.callback(invoke_without_command=True)
def compare(
    context: typer.Context,
    zoo: ZooOption = None,
    models: ModelsOption = None,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Samples to calibrate with. [default: 32]", show_default=False),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Runs of each. [default: 3]", show_default=False)
    ] = None,
    json: JsonOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short run, for a first look.")] = False,
) -> None:
    """qcli's presets and onnxruntime's quantizer: cost, accuracy, size and speed side by side."""
    if context.invoked_subcommand is not None:
        return
    from benchmarks.compare import QUICK, Options
    from benchmarks.compare import compare as work
    from benchmarks.tables import comparison_table

    _prepare(json)
    usual = QUICK if quick else Options()
    options = msgspec.structs.replace(usual, samples=samples or usual.samples, repeats=repeats or usual.repeats)
    report = work(chosen_subjects(zoo_folder(zoo), models), options)
    console = _console()
    for table in report.models:
        console.print(comparison_table(table, reduce_range=report.reduce_range))
    _write(report, json)


@app.command()
def calibration(
    zoo: ZooOption = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="The model.")] = "mobilenetv2_imagenet",
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each.")] = 3,
    json: JsonOption = None,
) -> None:
    """Time and memory with 25 and with 100 calibration samples."""
    from benchmarks.calibration import measure_calibration
    from benchmarks.tables import calibration_table

    _prepare(json)
    report = measure_calibration(subject(required_zoo(zoo), model), repeats)
    _console().print(calibration_table(report))
    _write(report, json)


@app.command()
def acceptance(zoo: ZooOption = None, models: ModelsOption = None, json: JsonOption = None) -> None:
    """The acceptance list as a Markdown table; exit code 1 if something is not met."""
    from benchmarks.acceptance import accept
    from benchmarks.tables import acceptance_markdown

    _prepare(json)
    names = [name.strip() for name in models.split(",") if name.strip()] if models else None
    report = accept(required_zoo(zoo), names)
    sys.stdout.write(acceptance_markdown(report))
    _write(report, json)
    if not report.met:
        raise typer.Exit(1)


@app.command()
def sweep(
    zoo: ZooOption = None,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only those with one of these in the name.", show_default=False)
    ] = None,
    presets: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these. [default: all]", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the page there.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep all rows there. [default: out/sweep.json]", show_default=False),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Models at the same time.")] = 2,
    time_limit: Annotated[float, typer.Option(metavar="S", min=1, help="Seconds for each preset.")] = 600.0,
    latency: Annotated[bool, typer.Option(help="Time the presets that claim speed, one by one.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows that the file holds.")] = False,
) -> None:
    """Every model of the zoo with every preset, as a Markdown page; exit code 1 if one is at fault."""
    from benchmarks.sweep import KEPT, Options
    from benchmarks.sweep import sweep as work
    from benchmarks.sweep_page import sweep_page

    kept = json or KEPT
    kept.parent.mkdir(exist_ok=True)
    for path in (output, kept):
        _prepare(path)
    options = Options(
        models=_listed(models),
        presets=_listed(presets),
        jobs=jobs,
        time_limit=time_limit,
        latency=latency,
        resume=resume,
    )
    report = work(required_zoo(zoo), options, kept, lambda report: _write(report, kept))
    text = sweep_page(report)
    if output is not None:
        replace_file(output, text.encode())
    else:
        sys.stdout.write(text)
    if any(row.fault for row in report.rows):
        raise typer.Exit(1)


@app.command()
def ablation(
    zoo: ZooOption = None,
    models: ModelsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write the tables between its markers.", show_default=False
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep all cells there. [default: out/ablation.json]", show_default=False),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Calibration samples. [default: all]", show_default=False)
    ] = None,
    evaluation: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Evaluation samples. [default: all]", show_default=False)
    ] = None,
) -> None:
    """What each step brings; an interrupted run goes on where it was; exit code 1 if a step alone costs 0.3 dB."""
    from benchmarks.ablation import KEPT, AblationReport, Limits, ablate
    from benchmarks.ablation_table import ablation_markdown, check_page, falls, write_page

    subjects = sampled_subjects(zoo_folder(zoo), models)
    names = [each.name for each in subjects]
    kept = json or KEPT
    if json is None:
        kept.parent.mkdir(exist_ok=True)
    for path in (output, kept):
        _prepare(path)
    if output is not None:
        check_page(output)

    def save(report: AblationReport) -> None:
        _write(report, kept)
        if output is not None:
            write_page(output, ablation_markdown(report, names))

    report = ablate(subjects, Limits(calibration=samples, evaluation=evaluation), kept, save)
    if output is None:
        sys.stdout.write(ablation_markdown(report, names))
    lines = falls(report, names)
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    if lines:
        raise typer.Exit(1)


@app.command()
def formats(
    zoo: ZooOption = None,
    models: ModelsOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the page there.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep all rows there. [default: out/formats.json]", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Calibration samples.")] = 32,
    evaluation: Annotated[int, typer.Option(metavar="N", min=1, help="Evaluation samples.")] = 64,
) -> None:
    """Size against accuracy of stored weights in every format; an interrupted run goes on where it was."""
    from benchmarks.formats import KEPT, MODELS, Limits, formats_markdown, measure_formats

    subjects = chosen_subjects(required_zoo(zoo), models or MODELS)
    kept = json or KEPT
    if json is None:
        kept.parent.mkdir(exist_ok=True)
    for path in (output, kept):
        _prepare(path)
    limits = Limits(calibration=samples, evaluation=evaluation)
    report = measure_formats(subjects, limits, kept, lambda report: _write(report, kept))
    text = formats_markdown(report, [each.name for each in subjects], limits)
    if output is not None:
        replace_file(output, text.encode())
    else:
        sys.stdout.write(text)


@app.command()
def tuning(
    zoo: ZooOption = None,
    models: ModelsOption = None,
    time_limit: Annotated[float, typer.Option("--time-limit", metavar="S", help="Seconds for each search.")] = 300.0,
    json: JsonOption = None,
) -> None:
    """What `qcli tune` reaches within limits on the models of a zoo, as a Markdown table."""
    from benchmarks.tuning import measure_tuning, tuning_markdown

    _prepare(json)
    names = [name.strip() for name in models.split(",") if name.strip()] if models else None
    report = measure_tuning(required_zoo(zoo), names, time_limit, lambda report: _write(report, json))
    sys.stdout.write(tuning_markdown(report))


@app.command()
def backend(
    presets: Annotated[str | None, typer.Option(metavar="A,B", help="Only these.", show_default=False)] = None,
    part: Annotated[int, typer.Option(metavar="N", min=1, help="Only every N-th model.")] = 1,
) -> None:
    """The onnx package's own test models, counted by verdict; exit code 1 if one is at fault."""
    from benchmarks.backend import PRESETS, counted, judge, relevant

    names = [name.strip() for name in presets.split(",")] if presets else PRESETS
    verdicts = [judge(case, preset) for preset in names for case in relevant(preset, large=part == 1)[::part]]
    sys.stdout.write(counted(verdicts))
    if any(verdict.fault for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def large(json: JsonOption = None) -> None:
    """Peak memory and time for a model of 3.2 GB; exit code 1 if it takes more than 600 MB."""
    from benchmarks.large import measure_large
    from benchmarks.tables import large_table

    _prepare(json)
    report = measure_large()
    _console().print(large_table(report))
    _write(report, json)
    if any(run.met is False for run in report.runs):
        raise typer.Exit(1)


@app.command()
def decoder(
    size: Annotated[str, typer.Option(metavar="SIZE", help="Bytes of weights, as in 3GB.")] = "3GB",
    gptq: Annotated[bool, typer.Option("--gptq/--no-gptq", help="Also learn the weights, which takes minutes.")] = True,
    json: JsonOption = None,
) -> None:
    """A generated decoder in 4-bit blocks: memory and time, data-free and learned, as Markdown."""
    from benchmarks.decoder import decoder_markdown, measure_decoder
    from qcli.memory import parse_size

    _prepare(json)
    report = measure_decoder(parse_size(size), learned=gptq)
    sys.stdout.write(decoder_markdown(report))
    _write(report, json)


def main() -> int:
    """Runs the program; an error of qcli is a line and a hint."""
    try:
        app()
    except QcliError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


def _listed(names: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (names or "").split(",") if name.strip())


def _prepare(json: Path | None) -> None:
    """What cannot be written is refused before the work."""
    if json is not None:
        check_writable(json)


def _write(report: msgspec.Struct, json: Path | None) -> None:
    if json is not None:
        replace_file(json, encode_report(report))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH, markup=False, highlight=False, emoji=False)


if __name__ == "__main__":
    sys.exit(main())
