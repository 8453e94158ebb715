"""How results look on a terminal; what is not a terminal gets the same text unfolded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qcli.analysis.nouns import Analysis
    from qcli.benching.nouns import BenchReport
    from qcli.check import Findings
    from qcli.cookbook import Presets
    from qcli.cost_listing import KernelListing
    from qcli.doctor import Diagnosis
    from qcli.inspect import Inspection
    from qcli.recipe import Recipe
    from qcli.statistics import Header
    from qcli.types import Grid, Plan

_MOST_NODES = 20


def show_plan(plan: Plan, console: Console) -> None:
    rows = [
        (
            entry.site.value,
            entry.site.role.value,
            entry.site.op,
            _grid(entry.grid),
            _spec(entry.range),
            _spec(entry.encoding),
            entry.because,
        )
        for entry in plan.entries
    ]
    console.print(_table(("value", "role", "operator", "grid", "range", "encoding", "because"), rows))
    if plan.kept_float:
        console.print("\nstays float")
        kept = [(item.name or item.node, item.op, item.reason) for item in plan.kept_float]
        console.print(_table(("node", "operator", "why"), kept))
    console.print(f"\n{len(plan.entries)} sites, {len(plan.ties)} ties, {len(plan.kept_float)} nodes stay float")


def show_statistics(header: Header, console: Console) -> None:
    values = len({request.value for request in header.requests})
    rows = [
        ("samples", f"{header.samples}"),
        ("values", f"{values}"),
        ("model", header.model_sha256[:16]),
        ("recipe", header.recipe_sha256[:16]),
    ]
    console.print(_facts(rows))


def show_inspection(seen: Inspection, console: Console) -> None:
    from qcli.sizes import in_words

    facts = seen.model
    rows = [
        ("model", facts.path),
        ("opset", f"{facts.opset}"),
        *(("input", f"{spec.name}  {spec.dtype} {_shape(spec.shape)}") for spec in seen.inputs),
        *(("output", name) for name in seen.outputs),
        ("operators", _counts(seen.operators)),
        ("parameters", f"{facts.parameters:,}"),
        ("bytes", f"{facts.bytes:,}"),
        *((f"  {part}", f"{size:,}") for part, size in _parts(seen)),
        ("Q/DQ", f"{seen.quantize_nodes} QuantizeLinear, {seen.dequantize_nodes} DequantizeLinear"),
        *(("blocks", f"{count} weights in blocks of {size}") for size, count in seen.block_sizes.items()),
    ]
    if seen.bits_per_weight is not None:
        rows.append(("weights", f"{seen.weights:,}, {seen.bits_per_weight:.2f} bits each"))
    if seen.memory is not None:
        rows.append(("memory", in_words(seen.memory)))
    if seen.multiply_accumulates is not None:
        rows.append(("work", f"{seen.multiply_accumulates:,} multiply-accumulates for one sample"))
    if seen.kernels is not None:
        rows.append(("kernels", f"{seen.kernels.integer} integer, {seen.kernels.float_} float"))
        rows.append(("runs as", _counts(seen.kernels.by_kernel)))
    else:
        rows.append(("kernels", seen.problem))
    console.print(_facts(rows))


def _parts(seen: Inspection) -> Iterator[tuple[str, int]]:
    """What the bytes are, without what there is nothing of."""
    by = seen.bytes_by
    yield from ((f"{stored} weights", size) for stored, size in by.weights.items())
    named = (("scales", by.scales), ("zero points", by.zero_points), ("tables", by.tables), ("biases", by.biases))
    others = (("other constants", by.other), ("graph", by.graph), ("unused", by.padding))
    yield from ((name, size) for name, size in (*named, *others) if size)


def show_findings(findings: Findings, console: Console) -> None:
    alike: dict[tuple[str, str, str], list[str]] = {}
    for problem in findings.problems:
        alike.setdefault((problem.level, problem.message, problem.hint), []).append(problem.place)
    for (level, message, hint), places in alike.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        console.print(f"{level}: {places[0]}{more}: {message}", soft_wrap=True)
        if hint:
            console.print(f"  hint: {hint}", soft_wrap=True)
    counts = Counter(problem.level for problem in findings.problems)
    console.print(f"errors: {counts['error']}, warnings: {counts['warning']}")


def show_bench(report: BenchReport, console: Console) -> None:
    """The models, and the nodes that take the most time in one of them."""
    from qcli.benching.files import cells, columns, node_cells, node_columns, summary

    console.print(_table(columns(report), [cells(report, row) for row in report.models]))
    if report.nodes:
        console.print()
        console.print(_table(node_columns(report), [node_cells(cost) for cost in report.nodes[:_MOST_NODES]]))
    if len(report.nodes) > _MOST_NODES:
        console.print(f"and {len(report.nodes) - _MOST_NODES} more")
    console.print(f"\n{summary(report)}")


def show_analysis(analysis: Analysis, console: Console, top: int | None) -> None:
    """The whole model, the `top` worst rows, and what would help."""
    from qcli.analysis.files import COLUMNS, cells, headline, stages, verdict

    console.print(_facts(list(stages(analysis.whole))))
    console.print(f"\n{verdict(analysis)}\n", soft_wrap=True)
    rows = analysis.rows[:top]
    console.print(_table(COLUMNS, [cells(row) for row in rows]))
    if len(rows) < len(analysis.rows):
        console.print(f"and {len(analysis.rows) - len(rows)} more")
    for one in analysis.suggestions:
        console.print(f"\n{headline(one)}", soft_wrap=True)
        console.print(one.yaml.rstrip(), soft_wrap=True)
    for note in analysis.notes:
        console.print(f"\nnote: {note}", soft_wrap=True)


def show_diagnosis(seen: Diagnosis, console: Console) -> None:
    facts = seen.environment
    console.print(
        _facts(
            [
                ("qcli", facts.qcli),
                ("onnxruntime", facts.onnxruntime),
                ("onnx", facts.onnx),
                ("numpy", facts.numpy),
                ("python", facts.python),
                ("platform", seen.platform),
                ("cpu", f"{facts.cpu}, {seen.cores} cores usable, {facts.isa}"),
            ]
        )
    )
    console.print()
    console.print(_table(("operator", "integer kernel"), [(one.op, one.kernel or "none") for one in seen.kernels]))
    for note in seen.notes:
        console.print(f"\nnote: {note}", soft_wrap=True)


def show_kernels(listing: KernelListing, console: Console) -> None:
    """Times in milliseconds, a column for each mode."""
    from qcli.cost_listing import COLUMNS, cells, milliseconds

    console.print(_table(COLUMNS, [cells(row) for row in listing.rows]))
    if listing.conversions:
        rows = [(row.op, row.inputs, *(milliseconds(row, mode) for mode in row.ms)) for row in listing.conversions]
        console.print()
        console.print(_table(("conversion", "shape", "ms"), rows))
    facts = listing.environment
    threads = "1 thread" if facts.threads == 1 else f"{facts.threads} threads"
    console.print(
        f"\nmilliseconds on {facts.cpu}, {facts.isa}, onnxruntime {facts.onnxruntime}, {threads}", soft_wrap=True
    )
    if listing.missing:
        console.print(f"{listing.missing} kernels are not in the table")


def show_presets(presets: Presets, console: Console) -> None:
    console.print(_facts([(preset.name, preset.description) for preset in presets.presets]))


def show_recipe(recipe: Recipe, console: Console) -> None:
    origins = recipe.origins
    rows = [
        ("name", recipe.name, ""),
        ("description", recipe.description, origins.get("description", "default")),
        ("target", _spec(recipe.target), origins.get("target", "default")),
        *((f"samples.{key}", value, origins.get(f"samples.{key}", "default")) for key, value in _samples(recipe)),
        ("prepare", ", ".join(map(_spec, recipe.prepare)), origins.get("prepare", "default")),
        *(("rule", _rule(sourced.rule), sourced.origin) for sourced in recipe.rules),
        ("finish", ", ".join(map(_spec, recipe.finish)), origins.get("finish", "default")),
        *_fallback(recipe),
        *_convert(recipe),
        *(("gate", gate, origins.get(f"gates[{gate}]", "")) for gate in recipe.gates),
    ]
    console.print(_table(("key", "value", "from"), rows))


def _fallback(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    for key in ("max_drop", "min_sqnr", "max_parts"):
        value = getattr(recipe.fallback, key, None)
        if value is not None:
            yield f"fallback.{key}", f"{value:g}", recipe.origins[f"fallback.{key}"]


def _convert(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    for key in ("to", "keep", "io", "without_kernel"):
        value = getattr(recipe.convert, key, None)
        if value is not None:
            text = value if isinstance(value, str) else ", ".join(value) or "nothing"
            yield f"convert.{key}", text, recipe.origins.get(f"convert.{key}", "default")


def show_checked(recipe: Recipe, console: Console) -> None:
    console.print(f"{recipe.name}: valid, {len(recipe.rules)} rules, {len(recipe.gates)} gates")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    return table


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(key, value)
    return table


def _grid(grid: Grid) -> str:
    """As in `int8 symmetric channel 0` or `int4 symmetric block 32 axis 0`."""
    words = [_spec(grid.format), "symmetric" if grid.symmetric else "asymmetric", grid.granularity]
    words += [f"{grid.block}"] if grid.block is not None else []
    words += [f"axis {grid.axis}" if grid.block is not None else f"{grid.axis}"] if grid.axis is not None else []
    words += [f"{grid.bits} bits"] if grid.bits is not None else []
    return " ".join(words)


def _spec(spec: Any) -> str:
    """A plug-in with its options, as in `percentile(keep=99.9)`."""
    if isinstance(spec, str):
        return spec
    name, given = next(iter(spec.items()))
    inside = ", ".join(f"{key}={value}" for key, value in (given or {}).items())
    return f"{name}({inside})" if inside else name


def _samples(recipe: Recipe) -> list[tuple[str, str]]:
    """The stated values of both sample sources, by key."""
    import msgspec

    sources: dict[str, dict[str, Any]] = msgspec.to_builtins(recipe.samples)
    return [
        (f"{kind}.{key}", f"{value}")
        for kind, source in sources.items()
        for key, value in source.items()
        if value is not None
    ]


def _rule(rule: Any) -> str:
    """A rule on one line, without what it leaves open."""
    import msgspec

    stated = {key: value for key, value in msgspec.to_builtins(rule).items() if value is not None}
    stated["match"] = {key: value for key, value in stated["match"].items() if value is not None} or "everything"
    return "  ".join(f"{key}: {_flat(value)}" for key, value in stated.items())


def _flat(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value}"
    return "{" + ", ".join(f"{key}: {_flat(inner)}" for key, inner in value.items() if inner is not None) + "}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _shape(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "of unknown rank"
    return "[" + ", ".join("?" if size is None else f"{size}" for size in shape) + "]"
