"""A report for people and for CI: a short table, JSON, Markdown, HTML, JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from qcli.amendments import ConversionFacts, FallbackFacts
from qcli.files import replace_file, writer_for
from qcli.report import Accuracy, FloatNode, KernelFacts, Report, Scores, encode_report
from qcli.sizes import BothMemories, in_words

if TYPE_CHECKING:
    from rich.console import Console

_MOST_FLOAT_NODES = 20

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "th,td{border:1px solid #8886;padding:.3rem .7rem;text-align:left}"
    ".passed{color:#197a3e}.failed{color:#c62828}"
)


def write_report(report: Report, path: Path) -> None:
    """Writes the report in the format that the suffix names: .json, .md, .html or .xml (JUnit).

    Raises UsageError for another suffix and for a place that cannot be written.
    """
    replace_file(path, report_writer(path)(report))


def report_writer(path: Path) -> Callable[[Report], bytes]:
    """The format for a path, to be asked before the work. Raises UsageError for an unknown suffix."""
    return writer_for(path, _WRITERS)


def show_report(report: Report, console: Console) -> None:
    """Prints the table that a user sees after a run. Names from files are never taken for markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in summary(report):
        table.add_row(key, Text(value))
    for result in report.gates:
        text = Text.assemble(_verdict(result.passed), "  ", result.gate, f"  (is {_number(result.value)})")
        text.stylize("green" if result.passed else "red", 0, len(_verdict(result.passed)))
        table.add_row("gate", text)
    console.print(table)


def summary(report: Report) -> Iterator[tuple[str, str]]:
    """The figures that count, as (what, how much), those alone that were measured."""
    if report.model is not None:
        yield "model", report.model.path
    if report.output is not None:
        yield "output", report.output.path
    if report.size is not None:
        size = report.size
        yield "size", f"{size.float_bytes:,} → {size.bytes:,} bytes ({size.ratio:.3f})"
    if report.accuracy is not None:
        yield from _accuracy_rows(report.accuracy)
    if report.fallback is not None:
        yield "fallback", _fallback(report.fallback)
    if report.conversion is not None:
        yield "computes in", _conversion(report.conversion)
    if report.kernels is not None:
        yield from _kernel_rows(report.kernels)
    if report.size is not None and report.size.bits_per_weight is not None:
        yield "weights", f"{report.size.weights:,}, {report.size.bits_per_weight:.2f} bits each with their scales"
    if report.memory is not None:
        yield from _memory_rows(report.memory)
    if report.latency is not None:
        speed = report.latency
        threads = "1 thread" if speed.threads == 1 else f"{speed.threads} threads"
        yield "latency", f"{speed.float_ms:.3f} → {speed.ms:.3f} ms ({speed.speedup:.2f}x, {threads})"
    if report.seconds is not None and report.seconds.total is not None:
        yield "time", f"{report.seconds.total:.1f} s"


def to_markdown(report: Report) -> bytes:
    """GitHub's Markdown, as for a comment on a pull request."""
    lines = [f"# qcli {report.command}: {report.status}", "", "| | |", "|--|--|"]
    lines += [f"| {key} | {cell(value)} |" for key, value in summary(report)]
    if report.gates:
        lines += ["", "## Gates", "", "| gate | value | |", "|--|--:|--|"]
        lines += [f"| {code(one.gate)} | {_number(one.value)} | {_verdict(one.passed)} |" for one in report.gates]
    returned = _returned(report)
    if returned:
        lines += ["", "## Fallback", "", "| part | operator | now |", "|--|--|--|"]
        lines += [f"| {code(name)} | {op} | {now} |" for name, op, now in returned]
    stays = report.conversion.kept_float if report.conversion is not None else ()
    if stays:
        lines += ["", "## Stays in float32", "", "| node | operator | why |", "|--|--|--|"]
        lines += [
            f"| {code(one.name or one.node)} | {one.op} | {cell(one.reason)} |" for one in stays[:_MOST_FLOAT_NODES]
        ]
        lines += _hidden(len(stays))
    kept = report.kernels.kept_float if report.kernels is not None else ()
    if kept:
        lines += ["", "## Float nodes", "", "| node | operator | share of the work | why |", "|--|--|--:|--|"]
        lines += [
            f"| {code(one.node)} | {one.op} | {_percent(one.mac_share)} | {cell(one.reason)} |" for one in _most(kept)
        ]
        lines += _hidden(len(kept))
    if report.warnings:
        lines += ["", "## Warnings", "", *(f"* {cell(text)}" for text in report.warnings)]
    return ("\n".join(lines) + "\n").encode()


def to_html(report: Report) -> bytes:
    """One page without scripts or anything from elsewhere."""
    title = f"qcli {escape(report.command)}: {report.status}"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f'<h1 class="{report.status}">{title}</h1>',
        _html_table((), [[key, value] for key, value in summary(report)]),
    ]
    if report.gates:
        rows = [[one.gate, _number(one.value), _verdict(one.passed)] for one in report.gates]
        parts += ["<h2>Gates</h2>", _html_table(("gate", "value", ""), rows)]
    returned = _returned(report)
    if returned:
        parts += ["<h2>Fallback</h2>", _html_table(("part", "operator", "now"), returned)]
    stays = report.conversion.kept_float if report.conversion is not None else ()
    if stays:
        rows = [[one.name or one.node, one.op, one.reason] for one in stays[:_MOST_FLOAT_NODES]]
        parts += ["<h2>Stays in float32</h2>", _html_table(("node", "operator", "why"), rows)]
        parts += [f"<p>{escape(line)}</p>" for line in _hidden(len(stays)) if line]
    kept = report.kernels.kept_float if report.kernels is not None else ()
    if kept:
        rows = [[one.node, one.op, _percent(one.mac_share), one.reason] for one in _most(kept)]
        parts += ["<h2>Float nodes</h2>", _html_table(("node", "operator", "share of the work", "why"), rows)]
        parts += [f"<p>{escape(line)}</p>" for line in _hidden(len(kept)) if line]
    if report.warnings:
        parts += ["<h2>Warnings</h2><ul>", *(f"<li>{escape(text)}</li>" for text in report.warnings), "</ul>"]
    return "\n".join([*parts, "</body></html>", ""]).encode()


def to_junit(report: Report) -> bytes:
    """One test case for the run, which got this far and so passed, and one for each gate."""
    seconds = report.seconds.total if report.seconds is not None else None
    failures = sum(not result.passed for result in report.gates)
    counts = {"tests": str(1 + len(report.gates)), "failures": str(failures), "errors": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": f"qcli {report.command}", **counts})
    run = _test_case(suite, report, "run")
    if seconds is not None:
        run.set("time", f"{seconds:.3f}")
    for result in report.gates:
        case = _test_case(suite, report, result.gate)
        if not result.passed:
            text = _xml(f"{result.gate} failed: the value is {_number(result.value)}")
            ElementTree.SubElement(case, "failure", {"message": text, "type": "gate"}).text = text
    facts = [f"{key}: {value}" for key, value in summary(report)]
    ElementTree.SubElement(suite, "system-out").text = _xml("\n".join(facts))
    if report.warnings:
        ElementTree.SubElement(suite, "system-err").text = _xml("\n".join(report.warnings))
    ElementTree.indent(suites)
    content: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


_WRITERS: dict[str, Callable[[Report], bytes]] = {
    ".json": encode_report,
    ".md": to_markdown,
    ".html": to_html,
    ".xml": to_junit,
}


def _accuracy_rows(accuracy: Accuracy) -> Iterator[tuple[str, str]]:
    if accuracy.sqnr is not None and accuracy.cosine is not None:
        yield "accuracy", f"{accuracy.sqnr:.1f} dB SQNR, cosine {accuracy.cosine:.5f}"
    equal = [output.equal for output in accuracy.outputs.values() if output.equal is not None]
    if equal:
        yield "equal", f"{_percent(min(equal))} of the values of outputs that are not float"
    if accuracy.top1 is not None:
        yield "top-1", _scores(accuracy.top1)
    if accuracy.top5 is not None:
        yield "top-5", _scores(accuracy.top5)
    if accuracy.agreement is not None:
        yield "agreement", f"{_percent(accuracy.agreement)} with the float model's top-1"
    if accuracy.perplexity is not None:
        found = accuracy.perplexity
        yield "perplexity", f"{found.quantized:.4g}, float {found.float_:.4g}, ratio {found.ratio:.4f}"


def _kernel_rows(kernels: KernelFacts) -> Iterator[tuple[str, str]]:
    share = _percent(kernels.integer_share)
    yield "kernels", f"{kernels.integer} integer, {kernels.float_} float; {share} of the work on integers"


def _memory_rows(memory: BothMemories) -> Iterator[tuple[str, str]]:
    for name, facts in (("float", memory.float_), ("compressed", memory.compressed)):
        yield f"memory, {name}", "not told by the system" if facts is None else in_words(facts)


def _fallback(facts: FallbackFacts) -> str:
    kept = "kept" if facts.met else "NOT kept"
    parts = f"{facts.returned} of {facts.of} parts {facts.what}" if facts.returned else "nothing went back"
    changes = []
    if facts.sqnr_before is not None and facts.sqnr_after is not None:
        changes.append(f"{facts.sqnr_before:.1f} → {facts.sqnr_after:.1f} dB")
    if facts.drop_before is not None and facts.drop_after is not None:
        changes.append(f"drop {facts.drop_before:.4f} → {facts.drop_after:.4f}")
    which = "held-out calibration samples" if facts.held_out else "calibration samples"
    return f"{kept}, {parts}: {', '.join(changes)} on {facts.samples} {which}"


def _conversion(facts: ConversionFacts) -> str:
    nodes = f"{facts.to}: {facts.nodes} nodes, {len(facts.kept_float)} stay in float32"
    if facts.sqnr is None:
        return f"{nodes}; not checked on samples"
    return f"{nodes}; {facts.sqnr:.1f} dB where every value is rounded, {facts.samples} samples checked"


def _returned(report: Report) -> list[list[str]]:
    parts = report.fallback.parts if report.fallback is not None else ()
    return [[part.node, part.op, part.now] for part in parts]


def _scores(scores: Scores) -> str:
    return f"{scores.float_:.4f} → {scores.quantized:.4f} (drop {scores.drop:.4f})"


def _most(kept: tuple[FloatNode, ...]) -> list[FloatNode]:
    """The float nodes with most of the work."""
    return sorted(kept, key=lambda one: -one.mac_share)[:_MOST_FLOAT_NODES]


def _hidden(nodes: int) -> list[str]:
    hidden = nodes - _MOST_FLOAT_NODES
    return ["", f"and {hidden} more"] if hidden > 0 else []


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _percent(share: float) -> str:
    """A share in percent, never rounded to all or to nothing."""
    percent = 100 * share
    if 0 < percent < 0.05:
        return "<0.1 %"
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"


def cell(text: str) -> str:
    """Text inside a Markdown table: nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A name inside a Markdown table, in a fence longer than any run of backticks in it."""
    plain = " ".join(text.split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{plain}{space}{fence}"


def _html_table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    top = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _test_case(suite: ElementTree.Element, report: Report, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", {"classname": f"qcli.{report.command}", "name": _xml(name)})


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
