"""The ablation as Markdown, inside of a page that is otherwise written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.ablation import AblationReport, Cell, Variant, alone, baseline, one_by_one, presets
from qcli.errors import UsageError
from qcli.files import replace_file

BEGIN = "<!-- ablation: begin -->"
END = "<!-- ablation: end -->"

TOLERATED_DB = 0.3
"""A step that is not undone may cost that much: the samples it is judged by are not those of the table."""

_WIDE = 6
"""Models side by side in one table."""

_MISSING = ""
_NOTHING = "-"


def falls(report: AblationReport, models: Sequence[str]) -> list[str]:
    """The steps that alone lower the SQNR of a model by more than is tolerated, one line each."""
    found = []
    for variant in alone():
        for model in models:
            change = _change(report, model, variant)
            if change is not None and change < -TOLERATED_DB:
                found.append(f"{variant.step} on {model}: {change:+.1f} dB")
    return found


def ablation_markdown(report: AblationReport, models: Sequence[str]) -> str:
    """Both tables for these models, as many side by side as can be read."""
    where = report.environment
    blocks = [models[at : at + _WIDE] for at in range(0, len(models), _WIDE)]
    lines = [
        BEGIN,
        "",
        f"Made by `make bench` with onnxruntime {where.onnxruntime} on {where.cpu} ({where.isa}), one thread. SQNR in "
        "dB of the worst output; agreement with the float model's top-1, for classifiers; seconds for the whole of "
        "`qcli quantize --no-latency`, evaluation included.",
        "",
        "### Steps added one by one",
        "",
        "SQNR / agreement / seconds. Each row adds a step to the row before it, up to the presets. *undone*: the trial "
        "on held-out samples took the row's step back.",
        "",
    ]
    for block in blocks:
        lines += [*_table((*one_by_one(), *presets()), block, lambda *at: _absolute(report, *at)), ""]
    lines += [
        "### Every step alone",
        "",
        f"Change of SQNR in dB against `{baseline().preset}`; 0 where there was nothing to do. Losses of more than "
        f"{TOLERATED_DB} dB are bold.",
        "",
    ]
    for block in blocks:
        lines += [*_table(alone(), block, lambda *at: _relative(report, *at)), ""]
    return "\n".join([*lines, END]) + "\n"


def check_page(page: Path) -> None:
    """Raises UsageError if there is a file without the two markers, one before the other."""
    if page.is_file():
        _parts(page)


def write_page(page: Path, text: str) -> None:
    """Puts `text`, markers included, in place of what stands between the markers of a page; or makes the page."""
    before, after = _parts(page) if page.is_file() else ("", "")
    replace_file(page, f"{before}{text.strip()}{after or chr(10)}".encode())


def _parts(page: Path) -> tuple[str, str]:
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"'{page}' has no place for the tables", f"mark it with {BEGIN} and {END}")
    return before, after


def _table(rows: Sequence[Variant], models: Sequence[str], shown: Callable[[str, Variant], str]) -> Iterator[str]:
    yield f"| | {' | '.join(models)} |"
    yield "|--|" + "--|" * len(models)
    for row in rows:
        yield f"| {row.name} | {' | '.join(shown(model, row) for model in models)} |"


def _absolute(report: AblationReport, model: str, variant: Variant) -> str:
    cell = report.cell(model, variant)
    if cell is None or cell.error:
        return _failed(cell)
    agreement = _NOTHING if cell.agreement is None else f"{cell.agreement:.1%}"
    figures = (_NOTHING if cell.sqnr is None else f"{cell.sqnr:.1f}", agreement, f"{cell.seconds:.1f}")
    return " / ".join(figures) + _remark(cell, variant)


def _relative(report: AblationReport, model: str, variant: Variant) -> str:
    cell = report.cell(model, variant)
    if cell is None or cell.error:
        return _failed(cell)
    change = _change(report, model, variant)
    if change is None:
        return _NOTHING
    shown = "0" if change == 0 else f"{change:+.1f}"
    return (f"**{shown}**" if change < -TOLERATED_DB else shown) + _remark(cell, variant)


def _change(report: AblationReport, model: str, variant: Variant) -> float | None:
    cell, before = report.cell(model, variant), report.cell(model, baseline())
    if cell is None or before is None or cell.sqnr is None or before.sqnr is None:
        return None
    return 0.0 if cell.sqnr == before.sqnr else cell.sqnr - before.sqnr


def _failed(cell: Cell | None) -> str:
    return _MISSING if cell is None else "error: " + cell.error.replace("|", "\\|")


def _remark(cell: Cell, variant: Variant) -> str:
    """What the report says of the row's own step."""
    said = [warning for warning in cell.warnings if f"'{variant.step}'" in warning]
    for word in ("undone", "skipped"):
        if any(f"was {word}" in warning for warning in said):
            return f" *{word}*"
    return ""
