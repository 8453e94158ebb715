"""An analysis as a file: JSON and CSV hold all of it, Markdown what fits on a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from qcli.analysis.nouns import Analysis, Row, Suggestion, Whole
from qcli.files import replace_file, writer_for
from qcli.render import cell, code
from qcli.report import encode_report

COLUMNS = ("part", "operator", "output", "alone", "weights", "activations", "share", "gain")
"""What each row shows: ratios in dB, a share in percent, and the gain in dB when it alone is float."""


def write_analysis(analysis: Analysis, path: Path, top: int | None = None) -> None:
    """Writes the format that the suffix names: .json, .csv or .md.

    Raises UsageError for another suffix and for a place that cannot be written.
    """
    replace_file(path, analysis_writer(path)(analysis, top))


def analysis_writer(path: Path) -> Callable[[Analysis, int | None], bytes]:
    """The format for a path, to be asked before the work. Raises UsageError for an unknown suffix."""
    return writer_for(path, _WRITERS)


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is shown, in the order of `COLUMNS`."""
    ratios = (row.output, row.alone, row.weights, row.activations)
    return (row.name, row.op, *map(decibels, ratios), f"{100 * row.share:.1f} %", f"{row.gain:+.2f}")


def decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def stages(whole: Whole) -> Iterator[tuple[str, str]]:
    """The whole model step by step, as (what is quantized, ratio)."""
    yield "float check", f"{whole.float_check:.1f} dB"
    if whole.weights_only is not None:
        yield "weights only", f"{whole.weights_only:.1f} dB"
    if whole.activations_only is not None:
        yield "activations only", f"{whole.activations_only:.1f} dB"
    yield "both, simulated", f"{whole.simulated:.1f} dB"
    yield "as onnxruntime runs it", f"{whole.quantized:.1f} dB"


def headline(suggestion: Suggestion) -> str:
    """What a suggestion brings and costs, in one line."""
    nodes = {0: "", 1: ", 1 more node in float"}.get(suggestion.floats, f", {suggestion.floats} more nodes in float")
    return f"{suggestion.gain:+.1f} dB, to {suggestion.sqnr:.1f} dB{nodes}: {suggestion.why}"


def verdict(analysis: Analysis) -> str:
    """Who is to blame, as a sentence."""
    return {
        "weights": "the weights are to blame",
        "activations": "the activations are to blame",
        "both": "weights and activations are both to blame",
        "neither": "nothing is to blame: the noise is negligible",
    }[analysis.blame]


def _to_json(analysis: Analysis, top: int | None) -> bytes:
    return encode_report(analysis)


def _to_csv(analysis: Analysis, top: int | None) -> bytes:
    """All rows, figures unrounded, with the names of the JSON's keys as the header."""
    stream = io.StringIO()
    keys = ("name", "op", "output", "alone", "weights", "activations", "gain", "share", "graph")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*keys, "nodes", "values"))
    for row in analysis.rows:
        writer.writerow((*(getattr(row, key) for key in keys), " ".join(row.nodes), " ".join(row.values)))
    return stream.getvalue().encode()


def _to_markdown(analysis: Analysis, top: int | None) -> bytes:
    lines = [f"# qcli analyze: {cell(verdict(analysis))}", "", "| quantized | SQNR |", "|--|--:|"]
    lines += [f"| {what} | {value} |" for what, value in stages(analysis.whole)]
    lines += ["", f"## By {analysis.by}", "", f"| {' | '.join(COLUMNS)} |", f"|--|--|{'--:|' * (len(COLUMNS) - 2)}"]
    for row in analysis.rows[:top]:
        name, *rest = cells(row)
        lines.append(f"| {code(name)} | {' | '.join(map(cell, rest))} |")
    hidden = len(analysis.rows) - len(analysis.rows[:top])
    lines += ["", f"and {hidden} more"] if hidden else []
    if analysis.suggestions:
        lines += ["", "## Suggestions"]
    for one in analysis.suggestions:
        lines += ["", cell(headline(one)), "", "```yaml", one.yaml.rstrip(), "```"]
    lines += ["", "## Notes", "", *(f"* {cell(text)}" for text in analysis.notes)] if analysis.notes else []
    lines += ["", "## Warnings", "", *(f"* {cell(text)}" for text in analysis.warnings)] if analysis.warnings else []
    return ("\n".join(lines) + "\n").encode()


_WRITERS: dict[str, Callable[[Analysis, int | None], bytes]] = {
    ".json": _to_json,
    ".csv": _to_csv,
    ".md": _to_markdown,
}
