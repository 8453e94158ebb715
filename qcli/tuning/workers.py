"""Processes that run candidates on the samples: several are judged at once, and one that crashes ends only itself.

Each is this module run by the same interpreter: the job comes in as a line of JSON, then paths of models one by one,
and for each goes out the accuracy or the error. Nothing is timed there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Literal, Self

import msgspec

from qcli.errors import QcliError, UsageError
from qcli.graph import load_model
from qcli.recipe import load_recipe
from qcli.tuning.judge import Judge, Judged, open_judge
from qcli.tuning.metric import metric_of
from qcli.tuning.nouns import TuneJob
from qcli.types import Noun


class _Reply(Noun, frozen=True, kw_only=True):
    accuracy: Judged | None = None
    error: str = ""
    hint: str = ""


class _Worker:
    """One process. It is started anew if it has ended."""

    def __init__(self, job: TuneJob) -> None:
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None

    def accuracy(self, path: Path) -> Judged | None:
        """Of the model in a file; None if it ended the process or does not run. Raises UsageError as the judge does."""
        try:
            process = self._running()
            _send(process.stdin, str(path))
            line = process.stdout.readline() if process.stdout is not None else b""
            reply = msgspec.json.decode(line, type=_Reply)
        except (OSError, msgspec.DecodeError):  # it ended, maybe in the middle of its words
            self.close()
            return None
        if reply.error:
            raise UsageError(reply.error, reply.hint)
        return reply.accuracy

    def end(self) -> None:
        """From any thread: whoever waits for an answer gets none."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):  # what was not sent yet cannot be any more
                        stream.close()
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            command = [sys.executable, "-m", __spec__.name]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
            _send(self._process.stdin, self._job)
        return self._process


class Workers:
    """Several processes, to be used in a `with` block."""

    def __init__(self, job: TuneJob, count: int) -> None:
        self._workers = [_Worker(job) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def accuracies(self, paths: Sequence[Path]) -> list[Judged | None]:
        """Of models in files, as many at once as there are processes. The order is that of `paths`."""
        found: list[Judged | None] = []
        with ThreadPoolExecutor(len(self._workers)) as pool, ExitStack() as unfinished:
            unfinished.callback(self._end)  # an interrupt does not wait for what is no longer wanted
            for start in range(0, len(paths), len(self._workers)):
                some = paths[start : start + len(self._workers)]
                asked = [pool.submit(worker.accuracy, path) for worker, path in zip(self._workers, some, strict=False)]
                found += [one.result() for one in asked]
            unfinished.pop_all()
        return found

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()


def _send(stream: IO[bytes] | None, content: object) -> None:
    if stream is not None:
        stream.write(msgspec.json.encode(content, enc_hook=str) + b"\n")
        stream.flush()


def _read_as(kind: type[Any], content: Any) -> Any:
    return kind(content)


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answers until there are no more requests."""
    first = requests.readline()
    if not first:
        return
    job = msgspec.json.decode(first, type=TuneJob, dec_hook=_read_as)
    source = load_model(job.model)
    recipe = load_recipe(job.recipe, job.settings)
    judge, _ = open_judge(job, source, recipe, metric_of(job), share=job.jobs)
    for line in requests:
        _send(replies, _answer(judge, Path(msgspec.json.decode(line, type=str))))


def _answer(judge: Judge, path: Path) -> _Reply:
    try:
        return _Reply(accuracy=judge.accuracy(load_model(path)))
    except UsageError as error:
        return _Reply(error=error.message, hint=error.hint)
    except QcliError:
        return _Reply()


def _channel(stream: IO[str], instead: int, mode: Literal["rb", "wb"]) -> IO[bytes]:
    """A standard stream for this process alone: what else runs in it, a metric of the user's, gets another one."""
    own = os.dup(stream.fileno())
    os.dup2(instead, stream.fileno())
    return os.fdopen(own, mode)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells all of its processes; the search ends its own
    with Path(os.devnull).open("rb") as nothing:
        _serve(_channel(sys.stdin, nothing.fileno(), "rb"), _channel(sys.stdout, sys.stderr.fileno(), "wb"))
