"""What runs in a process that will be killed: one call of qcli, in a fork of a process that has imported it."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import qcli


def context() -> multiprocessing.context.ForkServerContext:
    """Children start in milliseconds, each as if qcli had just been imported."""
    made = multiprocessing.get_context("forkserver")
    modules = [module.name for module in pkgutil.walk_packages(qcli.__path__, "qcli.")]
    made.set_forkserver_preload([name for name in modules if name != "qcli.__main__"])
    return made


def run(folder: str, arguments: list[str], embed_limit: int | None, most_bytes: int | None, ready: Connection) -> None:
    """Runs qcli in `folder`, with temporary files in its `tmp`, and leaves with its exit code."""
    import qcli.graph.save
    from qcli.cli import main

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's child dies of it until qcli listens
    os.chdir(folder)
    os.environ["QCLI_CACHE_DIR"] = str(Path(folder) / "cache")
    tempfile.tempdir = str(Path(folder) / "tmp")
    with open(os.devnull, "w") as silence:
        sys.stdout = sys.stderr = silence
        if embed_limit is not None:
            qcli.graph.save._EMBED_LIMIT = embed_limit
        if most_bytes is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        ready.send_bytes(b"ready")
        os._exit(main(arguments))
