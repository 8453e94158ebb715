"""One case: files in a folder and the arguments of qcli, all of it from a seed and a number."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from fuzz.inputs import mutated_plan, mutated_recipe, write_samples
from fuzz.models import base_models, mutated_bytes, mutated_graph
from qcli.cli import main
from qcli.errors import QcliError
from qcli.graph import load_model

Choice = random.Random
OUTPUTS = ("out.onnx", "out.rejected.onnx", "out.onnx.data", "report.json", "plan.yaml", "stats.npz", "deps.d")


@dataclass
class Case:
    """What to run in which folder, and what may be in it afterwards."""

    kind: str
    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


@functools.cache
def _bases() -> dict[str, tuple[onnx.ModelProto, bytes]]:
    return {name: (proto, proto.SerializeToString()) for name, proto in base_models().items()}


def make_case(seed: int, number: int, folder: Path) -> Case:
    """Writes the files of a case into an empty folder. The same seed and number give the same files."""
    choice = random.Random(f"{seed}:{number}")
    kind = choice.choice(
        ("bytes", "bytes", "bytes", "graph", "graph", "graph", "recipe", "recipe", "samples", "plan", "stats")
    )
    arguments = _KINDS[kind](folder, choice)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return Case(kind, arguments, files)


def _quick(choice: Choice) -> str:
    """A model that is quantized in a moment."""
    return choice.choice(("conv", "dense", "branch", "function", "shapes", "old"))


def _write(folder: Path, content: bytes) -> str:
    (folder / "model.onnx").write_bytes(content)
    return "model.onnx"


def _bytes(folder: Path, choice: Choice) -> list[str]:
    name, other = choice.choice(list(_bases())), choice.choice(list(_bases()))
    return _command(_write(folder, mutated_bytes(_bases()[name][1], choice, _bases()[other][1])), choice)


def _graph(folder: Path, choice: Choice) -> list[str]:
    name = _quick(choice) if choice.random() < 0.7 else choice.choice(list(_bases()))
    mutated = mutated_graph(_bases()[name][0], choice)
    try:
        content = mutated.SerializeToString()
    except ValueError:  # a text that is no UTF-8
        content = _bases()[name][1]
    return _command(_write(folder, content), choice)


def _command(model: str, choice: Choice) -> list[str]:
    what = choice.randrange(10)
    if what < 6:
        extra = choice.choice(
            ([], ["--report", "report.json", "--depfile", "deps.d"], ["--keep-failing"], ["--dry-run"])
        )
        latency = [] if choice.random() < 0.01 else ["--no-latency"]
        samples = ["--random-samples", "2"]
        return ["quantize", model, *samples, "-o", "out.onnx", "--threads", "1", "--no-cache", *latency, *extra]
    if what == 6:
        return ["plan", model, *choice.choice(([], ["-o", "plan.yaml"]))]
    if what == 7:
        return ["inspect", model, "--json"]
    if what == 8:
        return ["check", model]
    return ["validate", model, model, "-d", ".", "--no-latency", "--threads", "1"]


def _recipe(folder: Path, choice: Choice) -> list[str]:
    name = _quick(choice)
    _write(folder, _bases()[name][1])
    text = mutated_recipe(choice)
    (folder / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    what = choice.randrange(5)
    if what == 0:
        return ["recipe", choice.choice(("show", "check")), "recipe.yaml"]
    if what == 1:
        return ["plan", "model.onnx", "-r", "recipe.yaml"]
    if what == 2:
        return ["check", "model.onnx", "-r", "recipe.yaml"]
    return _quantize(["-r", "recipe.yaml", "--random-samples", "2"])


def _quantize(arguments: list[str]) -> list[str]:
    common = ["-o", "out.onnx", "--threads", "1", "--no-cache", "--no-latency"]
    return ["quantize", "model.onnx", *arguments, *common]


def _samples(folder: Path, choice: Choice) -> list[str]:
    name = _quick(choice)
    _write(folder, _bases()[name][1])
    inputs = {
        spec.name: ([2 if size is None else size for size in spec.shape or ()], spec.dtype)
        for spec in load_model(folder / "model.onnx").inputs()
    }
    write_samples(folder / "calib", inputs, choice)
    preprocess = [
        "--set",
        f"samples.calibration.preprocess={choice.choice(('unit', 'raw', 'imagenet', '{resize: 8}'))}",
    ]
    preprocess = preprocess if choice.random() < 0.6 else []
    what = choice.randrange(4)
    if what == 0:
        return ["check", "model.onnx", "-d", "calib", *preprocess]
    if what == 1:
        return ["validate", "model.onnx", "model.onnx", "-d", "calib", "--no-latency", "--threads", "1"]
    return _quantize(["-d", "calib", *preprocess])


@functools.cache
def _made(name: str, command: str, output: str) -> bytes:
    """A plan or statistics of a base model, to be damaged."""
    import os
    import tempfile

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            _write(Path(folder), _bases()[name][1])
            random_samples = ["--random-samples", "2"] if command == "calibrate" else []
            with (
                contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())),
                contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO())),
            ):
                code = main([command, "model.onnx", "-r", "int8-minmax", "-o", output, *random_samples])
            assert code == 0, name
            return Path(output).read_bytes()
        finally:
            os.chdir(before)


def _plan(folder: Path, choice: Choice) -> list[str]:
    name = choice.choice(("conv", "dense", "shapes"))
    _write(folder, _bases()[name][1])
    text = _made(name, "plan", "plan.yaml").decode()
    (folder / "given.yaml").write_text(mutated_plan(text, choice), encoding="utf-8")
    return _quantize(["--plan", "given.yaml", "-r", "int8-minmax", "--random-samples", "2"])


def _stats(folder: Path, choice: Choice) -> list[str]:
    name = choice.choice(("conv", "dense"))
    _write(folder, _bases()[name][1])
    made = _made(name, "calibrate", "stats.npz")
    content = _changed_stats(made, choice) if choice.random() < 0.6 else mutated_bytes(made, choice, made)
    (folder / "given.npz").write_bytes(content)
    if choice.random() < 0.2:
        (folder / "other.npz").write_bytes(_made(name, "calibrate", "stats.npz"))
        return ["merge", "given.npz", "other.npz", "-o", "stats.npz"]
    return _quantize(["--stats", "given.npz", "-r", "int8-minmax", "--random-samples", "2"])


def _changed_stats(content: bytes, choice: Choice) -> bytes:
    """An archive that is whole, with another content."""
    arrays = dict(np.load(io.BytesIO(content)))
    key = choice.choice(list(arrays))
    what = choice.randrange(6)
    if what == 0:
        del arrays[key]
    elif what == 1:
        arrays[key] = arrays[key].astype(choice.choice(("int8", "float64", "U4", "bool")))
    elif what == 2:
        arrays[key] = arrays[key].reshape(-1)[: choice.randrange(3)]
    elif what == 3 and key != "header" and arrays[key].dtype.kind == "f":
        arrays[key] = np.full_like(arrays[key], choice.choice((np.nan, np.inf, -np.inf, 3e38, 0)))
    elif what == 4:
        header = json.loads(arrays["header"].tobytes())
        place = choice.choice(list(header))
        header[place] = choice.choice((None, 1, "x", [], -1, 2**70))
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    else:
        arrays["9999.extra"] = np.zeros(3)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


_KINDS = {"bytes": _bytes, "graph": _graph, "recipe": _recipe, "samples": _samples, "plan": _plan, "stats": _stats}
__all__ = ["OUTPUTS", "Case", "QcliError", "make_case"]
