"""Killed at any moment, or without space to write: the output is whole, the old one, or absent."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from models import dense_net, saved

from fuzz.victim import context, run
from qcli.graph import load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="signals and forks as POSIX has them"),
]

MOMENTS = 25
"""For each of four signals, with and without external data."""

ARGUMENTS = ["quantize", "model.onnx", "--random-samples", "2", "-o", "out.onnx", "--no-latency", "--threads", "1"]
OLD_ARGUMENTS = [*ARGUMENTS, "-r", "int8-per-tensor"]
EXTERNAL = 100
"""Bytes of weights from which on they go to a file of their own; the model has 1,200."""

LEFT_BY_SIGKILL = re.compile(r"\.out\.onnx.*\.tmp|out\.onnx\..*data")


@dataclass
class Place:
    """A folder with a model, and what qcli makes of it by either recipe."""

    folder: Path
    embed_limit: int | None
    old: str = ""
    old_files: dict[str, bytes] = field(default_factory=dict)
    new: str = ""
    seconds: float = 0.0

    def start(self, arguments: list[str], most_bytes: int | None = None) -> tuple[int, float]:
        """Runs qcli to its end: its exit code and its time."""
        child = self.spawned(arguments, most_bytes)
        begin = time.perf_counter()
        child.join(60)
        return child.exitcode, time.perf_counter() - begin

    def spawned(self, arguments: list[str], most_bytes: int | None = None):  # a process of the context
        listening, ready = context().Pipe(duplex=False)
        child = context().Process(
            target=run, args=(str(self.folder), arguments, self.embed_limit, most_bytes, ready), daemon=True
        )
        child.start()
        ready.close()
        assert listening.poll(60) and listening.recv_bytes() == b"ready"
        listening.close()
        return child

    def clean(self) -> None:
        """Nothing but the model and an empty folder for temporary files."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "model.onnx":
                path.unlink()
        (self.folder / "tmp").mkdir()

    def outcome(self) -> str:
        """The digest of the output, its external data included; "" if there is none."""
        output = self.folder / "out.onnx"
        return load_model(output).sha256 if output.exists() else ""

    def strange(self) -> set[str]:
        """Whatever lies about besides the model, the output and its data."""
        known = re.compile(r"model\.onnx|tmp|cache|out\.onnx(\..*data)?")
        here = {path.name for path in self.folder.iterdir() if not known.fullmatch(path.name)}
        return here | {path.name for path in (self.folder / "tmp").iterdir()}


@pytest.fixture(scope="module", params=[None, EXTERNAL], ids=["embedded", "external"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("killed"), request.param)
    saved(dense_net(), made.folder / "model.onnx")
    made.clean()
    assert made.start(OLD_ARGUMENTS)[0] == 0
    made.old = made.outcome()
    made.old_files = {path.name: path.read_bytes() for path in made.folder.glob("out.onnx*")}
    code, made.seconds = made.start(ARGUMENTS)
    assert code == 0 and not made.strange()
    made.new = made.outcome()
    assert made.old != made.new
    yield made


def prepared(place: Place, with_old: bool) -> None:
    place.clean()
    for name, content in place.old_files.items() if with_old else ():
        (place.folder / name).write_bytes(content)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_killed_at_any_moment(place: Place, name: str) -> None:
    number = getattr(signal, name)
    choice = random.Random(f"{name} {place.embed_limit}")
    stopped = 0
    for moment in range(MOMENTS):
        with_old = moment % 2 == 1
        prepared(place, with_old)
        child = place.spawned(ARGUMENTS)
        begin = time.perf_counter()
        # The end, where files are written, is where it matters.
        share = choice.uniform(0, 1.1) if moment % 3 else choice.uniform(0.8, 1.05)
        time.sleep(share * place.seconds)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(child.pid, number)
        child.join(60)
        if child.exitcode == 0:  # the machine has become faster
            place.seconds = min(place.seconds, time.perf_counter() - begin)
        assert child.exitcode in (0, -number, 128 + number), child.exitcode
        assert place.outcome() in (place.new, place.old if with_old else ""), f"moment {moment}"
        if child.exitcode == 0:
            assert place.outcome() == place.new
        strange = place.strange()
        if name == "SIGKILL":
            strange = {left for left in strange if not LEFT_BY_SIGKILL.fullmatch(left) and not left.startswith("qcli-")}
        assert not strange, f"moment {moment}, exit code {child.exitcode}"
        stopped += child.exitcode != 0
    assert stopped >= MOMENTS // 4


def test_a_full_disk(place: Place) -> None:
    """Files cannot grow beyond a limit, which the system reports much like a full disk."""
    prepared(place, True)
    codes = []
    for most_bytes in (0, 1, 100, 1000, 2000, 3000, 4000, 6000, 10_000, 1_000_000):
        code, _ = place.start(ARGUMENTS, most_bytes)
        codes.append(code)
        assert place.outcome() == (place.new if code == 0 else place.old), most_bytes
        assert not place.strange(), most_bytes
    assert codes[0] == 7 and codes[-1] == 0 and set(codes) == {0, 7}, codes


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written(place: Place) -> None:
    prepared(place, True)
    place.folder.chmod(0o500)
    try:
        assert place.start(ARGUMENTS)[0] == 2
    finally:
        place.folder.chmod(0o700)
    assert place.outcome() == place.old and not place.strange()
