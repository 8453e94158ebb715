"""The options that several commands share, each with its help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from qcli.errors import UsageError

_MOST_THREADS = 1024
_MOST_SAMPLES = 1_000_000_000
_NUMBER = re.compile(r"[0-9]{1,9}")


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`3/8` as (3, 8)."""
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not slash or not (_NUMBER.fullmatch(index) and _NUMBER.fullmatch(count)):
        raise UsageError(f"--shard '{text}' is not i/n", "for example --shard 1/4")
    return int(index), int(count)


def parse_threads(text: str) -> tuple[int, ...]:
    """`1,2,4` as (1, 2, 4)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(_NUMBER.fullmatch(part) and 1 <= int(part) <= _MOST_THREADS for part in parts):
        raise UsageError(f"--threads '{text}' is no list of numbers from 1 to {_MOST_THREADS}", "for example 1,2,4")
    return tuple(dict.fromkeys(int(part) for part in parts))


def parse_memory(text: str | None) -> int | None:
    """`600MB` in bytes."""
    from qcli.memory import parse_size

    return parse_size(text) if text is not None else None


def parse_encodings_version(text: str) -> Literal["1.0.0", "0.6.1"]:
    """A version of AIMET's format that can be written."""
    if text == "0.6.1":
        return "0.6.1"
    if text != "1.0.0":
        raise UsageError(f"--encodings-version '{text}' is not known", "give 1.0.0 or 0.6.1")
    return "1.0.0"


def with_target(settings: list[str] | None, target_bpw: float | None) -> tuple[str, ...]:
    """Settings of a recipe with the one that `--target-bpw` is short for."""
    return (*(settings or ()), *([f"mixed.target_bpw={target_bpw:g}"] if target_bpw is not None else ()))


ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The float model, an .onnx file.", show_default=False)
]
RecipeOption = Annotated[str, typer.Option("-r", "--recipe", metavar="RECIPE", help="A preset's name or a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe. Repeatable.", show_default=False),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "-d",
        "--calibration",
        metavar="CALIB",
        help="Samples that ranges are learned from: a folder or a file. The recipe may name them instead.",
        show_default=False,
    ),
]
EvaluationOption = Annotated[
    Path | None,
    typer.Option(
        "--eval",
        metavar="DIR",
        help="Samples that the result is judged by.",
        show_default=False,
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="A table 'file,label' in place of a labels.csv beside the samples.",
        show_default=False,
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        min=1,
        help="Calibrate on N of the samples, spread evenly.",
        show_default=False,
    ),
]
RandomSamplesOption = Annotated[
    int | None,
    typer.Option(
        "--random-samples",
        metavar="N",
        min=1,
        max=_MOST_SAMPLES,
        help="Calibrate on N random inputs: for smoke tests, not for results.",
        show_default=False,
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Measure only the I-th of N parts of the samples.",
        show_default=False,
    ),
]
GateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        metavar="EXPR",
        help="A condition on the report, as in 'accuracy.top1.drop <= 0.01'. Repeatable.",
        show_default=False,
    ),
]
ReportOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write the report as .json, .md, .html or .xml (JUnit). Repeatable.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads", metavar="N", min=0, max=_MOST_THREADS, help="Threads to work with; 0 means one for each core."
    ),
]
RequantizeOption = Annotated[
    bool,
    typer.Option(
        "--requantize-rest", help="Accept a model that is quantized in part; quantize only what is still float."
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Memory that models may take while they run, as in 600MB or 4GB. Default: what is free.",
        show_default=False,
    ),
]
MemoryOption = Annotated[
    bool,
    typer.Option("--memory", help="Measure how much memory both models take, each in a process of its own."),
]
NoLatencyOption = Annotated[
    bool,
    typer.Option("--no-latency", help="Do not measure how fast the models are."),
]
