"""A comparison as a file: JSON, CSV and Markdown hold all of it, the terminal the nodes that take the most."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from qcli.benching.nouns import BenchReport, BenchRow
from qcli.files import replace_file, writer_for
from qcli.node_costs import NodeCost
from qcli.render import cell, code
from qcli.report import encode_report

_FIGURES = (
    "threads", "bytes", "rounds", "ms", "spread_ms", "fastest_ms", "slowest_ms", "outliers", "speedup",
    "peak_memory_mb", "base_memory_mb",
)  # fmt: skip
"""What the CSV says of a model, by the names of the JSON's keys."""

_NODE_FIGURES = ("node", "op", "output", "sources", "conversions_ms")


def write_bench(report: BenchReport, path: Path) -> None:
    """Writes the format that the suffix names: .json, .csv or .md.

    Raises UsageError for another suffix and for a place that cannot be written.
    """
    replace_file(path, bench_writer(path)(report))


def bench_writer(path: Path) -> Callable[[BenchReport], bytes]:
    """The format for a path, to be asked before the work. Raises UsageError for an unknown suffix."""
    return writer_for(path, _WRITERS)


def columns(report: BenchReport) -> tuple[str, ...]:
    """What the table of the models shows: bytes, milliseconds, and 10^6 bytes of memory if it was measured."""
    return ("model", "bytes", "threads", "ms", "spread", "speed", *(("memory",) if _weighed(report) else ()))


def cells(report: BenchReport, row: BenchRow) -> tuple[str, ...]:
    """A row as it is shown, in the order of `columns`."""
    memory = "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.1f} MB"
    figures = (f"{row.bytes:,}", f"{row.threads}", f"{row.ms:.3f}", f"{row.spread_ms:.3f}", f"{row.speedup:.2f}x")
    return (row.path, *figures, *((memory,) if _weighed(report) else ()))


def node_columns(report: BenchReport) -> tuple[str, ...]:
    """What the table of the nodes shows: milliseconds in each model, and how much faster than in the first."""
    names = [Path(path).name for path in report.paths]
    shown = names if len(set(names)) == len(names) else list(report.paths)
    return ("node", "operator", *shown, *(["speed"] if len(shown) == 2 else [f"speed {name}" for name in shown[1:]]))


def node_cells(cost: NodeCost) -> tuple[str, ...]:
    """A node as it is shown, in the order of `node_columns`."""
    ratios = ("" if ratio is None else f"{ratio:.2f}x" for ratio in cost.ratios[1:])
    return (cost.node or "not traced", cost.op, *(f"{ms:.3f}" for ms in cost.ms), *ratios)


def summary(report: BenchReport) -> str:
    """How it was measured, in a line."""
    invented = ", made-up samples of one row" if report.invented_samples else f", samples: {report.samples}"
    return f"{report.rounds} rounds{invented}"


def _weighed(report: BenchReport) -> bool:
    return any(row.peak_memory_mb is not None for row in report.models)


def _to_json(report: BenchReport) -> bytes:
    return encode_report(report)


def _to_csv(report: BenchReport) -> bytes:
    """A line for each model, then one for each node in each model, told apart by the first column."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("kind", "path", *_FIGURES, *_NODE_FIGURES))
    for row in report.models:
        figures = (getattr(row, key) for key in _FIGURES)
        writer.writerow(("model", row.path, *figures, *("" for _ in _NODE_FIGURES)))
    writer.writerows(line for cost in report.nodes for line in _node_lines(report, cost))
    return stream.getvalue().encode()


def _node_lines(report: BenchReport, cost: NodeCost) -> Iterator[tuple[object, ...]]:
    for index, path in enumerate(report.paths):
        known = {"threads": report.threads, "ms": cost.ms[index], "speedup": cost.ratios[index]}
        figures = (known.get(key, "") for key in _FIGURES)
        sources = " ".join(cost.sources)
        yield ("node", path, *figures, cost.node, cost.op, cost.output, sources, cost.conversions_ms[index])


def _to_markdown(report: BenchReport) -> bytes:
    lines = ["# qcli bench", "", *_head(columns(report), 1)]
    for row in report.models:
        path, *rest = cells(report, row)
        lines.append(f"| {code(path)} | {' | '.join(map(cell, rest))} |")
    lines += ["", cell(summary(report))]
    if report.nodes:
        lines += [
            "",
            "## By node",
            "",
            "Milliseconds in onnxruntime's own profile.",
            "",
            *_head(node_columns(report), 2),
        ]
    for cost in report.nodes:
        name, *rest = node_cells(cost)
        lines.append(f"| {code(name)} | {' | '.join(map(cell, rest))} |")
    lines += ["", "## Warnings", "", *(f"* {cell(text)}" for text in report.warnings)] if report.warnings else []
    return ("\n".join(lines) + "\n").encode()


def _head(names: tuple[str, ...], words: int) -> Iterator[str]:
    """The head of a table whose first columns hold words, and the others figures."""
    yield f"| {' | '.join(map(cell, names))} |"
    yield f"|{'--|' * words}{'--:|' * (len(names) - words)}"


_WRITERS: dict[str, Callable[[BenchReport], bytes]] = {".json": _to_json, ".csv": _to_csv, ".md": _to_markdown}
