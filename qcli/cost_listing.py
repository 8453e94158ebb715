"""`qcli doctor --kernels`: the table of kernel costs, of a model's nodes or of common operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qcli.costs.graph_keys import NodeKeys, conversions_of, keys_of_graph, standard_model
from qcli.costs.lookup import costs_for, load_costs
from qcli.costs.nouns import CostEnvironment, CostTable, KernelKey, Mode
from qcli.costs.table_file import write_table
from qcli.errors import UsageError
from qcli.existing import refuse_quantized
from qcli.files import check_distinct, check_writable
from qcli.graph import Model, check_sizes, concrete_shapes, load_model
from qcli.latency import made_up_feeds
from qcli.opsets import required_opset
from qcli.prepare import prepare
from qcli.recipe import load_recipe
from qcli.sources import open_source
from qcli.types import Array, Noun
from qcli.watch import Watch


class KernelsJob(Noun, frozen=True, kw_only=True):
    """What `qcli doctor` can be told about kernels.

    Without `model` common operators are shown. Its graph is that after the steps of `recipe`, for the shapes of the
    first sample of `calibration`, or of the recipe's own; without any, free axes have size one. `cost_table` is a table
    measured elsewhere, shown in place of this machine's. `threads` None means those of that table, or one.
    """

    kernels: bool = True
    model: Path | None = None
    recipe: str = "int8"
    calibration: Path | None = None
    cost_table: Path | None = None
    save: Path | None = None
    threads: int | None = None


class KernelRow(Noun, frozen=True, kw_only=True):
    """One node, or several alike, by mode: times, what a change of layout adds, and the operators that run.

    A mode that the node does not have is missing; one that was not measured, or could not be, is null, and `why` says
    what onnxruntime said.
    """

    op: str
    inputs: str
    attributes: str
    nodes: int
    ms: dict[str, float | None]
    layout_ms: dict[str, float]
    kernels: dict[str, str]
    why: dict[str, str]


class KernelListing(Noun, frozen=True, kw_only=True):
    """Kernels side by side, and conversions of what they read and write. `missing` counts what the table lacks."""

    schema: int = 1
    command: str = "doctor"
    environment: CostEnvironment
    rows: tuple[KernelRow, ...]
    conversions: tuple[KernelRow, ...]
    missing: int


def list_kernels(job: KernelsJob, watch: Watch) -> KernelListing:
    """Looks up or measures what a model's nodes cost, and writes the table if the job says so.

    Raises InputError for what is no model, UsageError for what is no table.
    """
    _check(job)
    foreign = load_costs(job.cost_table, watch) if job.cost_table is not None else None
    threads = job.threads or (foreign.environment.threads if foreign is not None else 1)
    model, feeds = _loaded(job, job.model, watch) if job.model is not None else standard_model()
    shapes = concrete_shapes(model, feeds)
    nodes = keys_of_graph(model, shapes, threads)
    groups = _grouped(nodes)
    conversions = conversions_of(nodes, shapes, threads)
    wanted = [key for modes in nodes.values() for key in modes.values()]
    table = costs_for([*wanted, *conversions], threads, foreign, watch)
    if job.save is not None:
        write_table(table, job.save)
    return KernelListing(
        environment=table.environment,
        rows=tuple(_row(keys, count, table) for keys, count in groups),
        conversions=tuple(_row([key], 1, table) for key in conversions),
        missing=len(table.missing([*wanted, *conversions])),
    )


def _check(job: KernelsJob) -> None:
    if not job.kernels:
        raise UsageError("a model and options are for the table of kernels", "add --kernels")
    if job.save is not None:
        check_distinct([job.save], [path for path in (job.model, job.cost_table) if path is not None])
        check_writable(job.save)


def _loaded(job: KernelsJob, path: Path, watch: Watch) -> tuple[Model, Mapping[str, Array]]:
    """The graph that would be quantized, and a sample."""
    recipe = load_recipe(job.recipe)
    source = load_model(path)
    refuse_quantized(source)
    check_sizes(source)
    samples = open_source(recipe.samples.calibration, job.calibration, source.inputs(), limit=1)
    watch.phase("prepare")
    model = prepare(source, required_opset(recipe), recipe.prepare, None, watch)
    feeds = next(iter(samples)).feeds if samples is not None else made_up_feeds(source.inputs())
    return model, feeds


def _grouped(nodes: NodeKeys) -> list[tuple[Sequence[KernelKey], int]]:
    """The keys of nodes that are alike, once, and how many there are."""
    counts = Counter(tuple(modes.values()) for modes in nodes.values())
    return list(counts.items())


def _row(keys: Sequence[KernelKey], count: int, table: CostTable) -> KernelRow:
    found = {key.mode.value: table.cost(key) for key in keys}
    return KernelRow(
        op=keys[0].op,
        inputs=", ".join("x".join(map(str, item.shape)) or "1" for item in keys[0].inputs if item is not None),
        attributes=" ".join(_attributes(keys[0])),
        nodes=count,
        ms={mode: cost.ms if cost is not None else None for mode, cost in found.items()},
        layout_ms={mode: cost.layout_ms for mode, cost in found.items() if cost is not None and cost.ms is not None},
        kernels={mode: cost.kernel for mode, cost in found.items() if cost is not None and cost.ms is not None},
        why={mode: cost.why for mode, cost in found.items() if cost is not None and cost.ms is None},
    )


def _attributes(key: KernelKey) -> Iterator[str]:
    for name, value in key.attributes:
        yield f"{name}={_short(value)}"


def _short(value: Any) -> str:
    """A list as in `2,2`, or `2` if all of it is the same."""
    if not isinstance(value, tuple):
        return f"{value}"
    return f"{value[0]}" if len(set(value)) == 1 else ",".join(map(str, value))


_SHOWN = (Mode.FLOAT, Mode.STATIC, Mode.STATIC_FLOAT_RESULT, Mode.DYNAMIC, Mode.WEIGHT_ONLY)

COLUMNS = (
    "operator", "inputs", "attributes", "nodes", *(mode.value.replace("_", " ") for mode in _SHOWN),
    "layout, float", "layout, static", "static runs as",
)  # fmt: skip


def cells(row: KernelRow) -> tuple[str, ...]:
    """A row as it is shown, in the order of `COLUMNS`."""
    times = [milliseconds(row, mode) for mode in _SHOWN]
    layouts = [f"{row.layout_ms[mode]:.4f}" if row.layout_ms.get(mode) else "" for mode in (Mode.FLOAT, Mode.STATIC)]
    return (row.op, row.inputs, row.attributes, f"{row.nodes}", *times, *layouts, row.kernels.get(Mode.STATIC, ""))


def milliseconds(row: KernelRow, mode: str) -> str:
    """A time as it is shown, `-` if there is none, and nothing for a mode that the node does not have."""
    if mode not in row.ms:
        return ""
    value = row.ms[mode]
    return "-" if value is None else f"{value:.4f}"
