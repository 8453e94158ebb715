"""What a search looks like on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcli.cli._tables import _table

if TYPE_CHECKING:
    from rich.console import Console

    from qcli.tuning.nouns import TuneReport


def show_tuning(report: TuneReport, console: Console) -> None:
    """The fronts, the best of them marked, and what the evaluation samples say of it."""
    from qcli.tuning.files import cells, columns, shown

    rows = [(mark, *cells(outcome)) for mark, outcome in shown(report)]
    console.print(_table(("", *columns(report)), rows))
    console.print(f"\n{len(report.tried)} plans tried on {report.samples} samples")
    if report.reason:
        console.print(report.reason, soft_wrap=True)
    result = report.result
    if result is not None and result.accuracy is not None and result.latency is not None and result.size is not None:
        sqnr = "" if result.accuracy.sqnr is None else f"{result.accuracy.sqnr:.1f} dB, "
        own = "" if report.result_metric is None else f"{report.metric} {report.result_metric:.6g}, "
        path = result.output.path if result.output is not None else ""
        console.print(f"{path}: {own}{sqnr}{result.latency.speedup:.2f}x, size {result.size.ratio:.3f}", soft_wrap=True)
