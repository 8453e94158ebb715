"""Runs fuzzed cases in this process and says which of them ended badly.

    python -m fuzz --seed 7 --cases 1000            a thousand cases
    python -m fuzz --seed 7 --first 123 --cases 1   one of them again, with its files and its traceback

One line of JSON for each bad case. The number of the case at hand is in the file --note, so that whoever started this
knows which one has killed it: a case that takes longer than --limit seconds ends the process with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from fuzz.cases import OUTPUTS, Case, make_case
from qcli.cli import main

_MEMORY = 8 << 30
"""Bytes of address space: what wants more is told that there is none, and the machine stays usable."""


def problems(case: Case, folder: Path, temporary: Path, outcome: tuple[int, str, str]) -> list[str]:
    """What is wrong with how a case ended."""
    code, out, err = outcome
    found = []
    if code not in range(8):
        found.append(f"exit code {code}")
    if "Traceback" in err or "Traceback" in out:
        found.append("a traceback")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if len(errors) != (code >= 2):
        found.append(f"{len(errors)} error lines with exit code {code}")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if strange := sorted(there - set(case.files) - set(OUTPUTS)):
        found.append(f"left behind: {strange}")
    if code > 1 and (
        half := sorted((there - set(case.files)) & {"out.onnx", "out.onnx.data", "plan.yaml", "stats.npz"})
    ):
        found.append(f"exit code {code}, but there is {half}")
    if any((folder / name).read_bytes() != content for name, content in case.files.items() if name in there):
        found.append("an input was changed")
    if set(case.files) - there:
        found.append("an input is gone")
    if left := os.listdir(temporary):
        found.append(f"left in the temporary folder: {left}")
    return found


def run_case(seed: int, number: int, root: Path, debug: bool) -> dict[str, object] | None:
    """Runs one case in a folder of its own; what is wrong with how it ended, or None."""
    os.chdir(root)
    folder, temporary = root / "case", root / "tmp"
    for place in (folder, temporary):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    case = make_case(seed, number, folder)
    os.chdir(folder)
    tempfile.tempdir = str(temporary)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "replace", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*case.arguments, *(["--debug"] if debug else [])])
    written = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err)]
    found = problems(case, folder, temporary, (code, *written))
    if debug:
        print(" ".join(case.arguments), code, *written, sep="\n", file=sys.stderr)
    if not found:
        return None
    text = [line for line in written[1].splitlines() if line.startswith(("error", "hint"))]
    return {"case": number, "kind": case.kind, "arguments": " ".join(case.arguments), "problems": found, "text": text}


def run_all(options: argparse.Namespace) -> int:
    warnings.simplefilter("error")
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    bad = 0
    with tempfile.TemporaryDirectory(prefix="qcli-fuzz-") as root:
        os.environ["QCLI_CACHE_DIR"] = str(Path(root) / "cache")
        home = Path.cwd()
        for number in range(options.first, options.first + options.cases * options.step, options.step):
            if options.note:
                Path(options.note).write_text(str(number))
            faulthandler.dump_traceback_later(options.limit, exit=True)
            found = run_case(options.seed, number, Path(root), options.debug)
            faulthandler.cancel_dump_traceback_later()
            if found is not None:
                bad += 1
                print(json.dumps(found), flush=True)
        os.chdir(home)
        if options.keep:
            shutil.copytree(Path(root) / "case", options.keep, dirs_exist_ok=True)
    return 1 if bad else 0


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz qcli.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--limit", type=float, default=30)
    parser.add_argument("--note", default="")
    parser.add_argument("--keep", default="")
    parser.add_argument("--debug", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_all(parsed()))
