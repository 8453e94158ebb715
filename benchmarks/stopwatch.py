"""Runs one command and writes what it cost as JSON: `python -I stopwatch.py RESULT COMMAND…`.

A process of its own, because Linux lets a child's peak memory begin with that of the process that started it: whoever
has just run onnxruntime would lend every later child its own peak. This one is small and imports next to nothing.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

_POLL_SECONDS = 0.01


def main(result: str, command: list[str]) -> int:
    """Runs `command` with this process's streams, returns its exit code."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    wait = _wait_posix if hasattr(os, "wait4") else _wait_polling
    code, peak_bytes = wait(process)
    seconds = time.perf_counter() - begin
    cost = {"exit_code": code, "seconds": seconds, "peak_bytes": peak_bytes}
    Path(result).write_text(json.dumps(cost), encoding="utf-8")
    return code


def _wait_posix(process: subprocess.Popen[bytes]) -> tuple[int, int | None]:
    _, status, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * unit


def _wait_polling(process: subprocess.Popen[bytes]) -> tuple[int, int | None]:
    """Where there is no wait4: psutil, asked again and again; without psutil no memory is known."""
    try:
        import psutil
    except ImportError:
        return process.wait(), None
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            memory = watched.memory_info()
        except psutil.NoSuchProcess:
            break
        peak = max(peak, int(getattr(memory, "peak_wset", memory.rss)))
        time.sleep(_POLL_SECONDS)
    return process.wait(), peak or None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
