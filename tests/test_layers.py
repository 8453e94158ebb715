"""Who may know whom: the layers of docs/architecture.md, over every module of qcli."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qcli"

LAYERS = {
    "nouns": (
        "types",
        "errors",
    ),
    "plain tools": (
        "configure",
        "files",
        "watch",
        "yaml_file",
        "job",
        "memory",
        "blas",
        "parallel",
        "sizes",
        "amendments",
        "allot",
    ),
    "registry": (
        "plugins",
        "contracts",
        "depfile",
        "stats._bins",
    ),
    "the door to onnx": (
        "graph",
        "graph.*",
    ),
    "the door to onnxruntime": ("runtime",),
    "where channels lie": (
        "axes",
        "shifts",
        "vectors",
    ),
    "levels": ("levels",),
    "knowledge": (
        "distribution",
        "existing",
        "layers",
        "windows",
        "responses",
        "channels",
        "shift_rules",
        "paired",
        "storage_roles",
        "scale_forms",
        "ties",
        "pieces",
    ),
    "what follows from it": (
        "granularity",
        "conversion",
        "quick_blocks",
        "blocks",
    ),
    "formats, stats, samples": (
        "formats.*",
        "stats.*",
        "samples.*",
    ),
    "ranges and their like": (
        "ranges.*",
        "roundings.*",
        "metrics.*",
        "targets.*",
        "statistics",
    ),
    "graph plug-ins": (
        "encodings.*",
        "steps.*",
    ),
    "a sweep": ("one_sweep",),
    "facts": (
        "recipe",
        "report",
        "dataset",
        "tracing",
        "pairs",
        "legality",
        "trial_graph",
        "expectation",
        "halves",
        "half_nodes",
        "scales",
        "vector_rows",
        "vector_tables",
        "tails",
    ),
    "sweep by sweep": ("by_parts",),
    "parts of a stage": (
        "suitability",
        "matching",
        "placement",
        "calibrate",
        "cache",
        "sources",
        "learn",
        "fitting",
        "origins",
        "tables",
    ),
    "parts of a judgement": (
        "gates",
        "kernels",
        "latency",
        "profile",
        "comparison",
        "trial",
        "energies",
        "learn_weight",
        "storage",
        "benching.peak",
    ),
    "where the time goes": ("node_costs",),
    "what kernels cost": (
        "costs",
        "costs.*",
    ),
    "what is left over": (
        "opsets",
        "stored",
        "measured",
        "mixed",
    ),
    "stages": (
        "plan",
        "data_free",
        "prepare",
        "solve",
        "validate",
        "inspect",
        "doctor",
        "render",
        "cookbook",
    ),
    "after the measurement": (
        "refine",
        "apply",
        "doubts",
        "job_files",
        "learnable",
        "aimet",
        "teaching",
        "small_floats",
    ),
    "learning in place": (
        "held_out",
        "in_order",
        "foretold",
        "choose",
        "range_search",
    ),
    "finishing": (
        "finish",
        "convert",
    ),
    "a job so far": ("prepared",),
    "its samples": (
        "job_samples",
        "job_results",
    ),
    "jobs": (
        "pipeline",
        "side_by_side",
        "check",
        "benching.*",
    ),
    "job by job": (
        "stages",
        "analysis.*",
        "cost_listing",
    ),
    "searching": (
        "tuning",
        "tuning.*",
    ),
    "ways back": ("ways_back",),
    "falling back": ("fallback",),
    "command line": (
        "cli",
        "cli.*",
    ),
    "entrances": (
        "__init__",
        "__main__",
    ),
}
"""From the bottom up. Of several patterns that fit a module the longest counts. A module imports from layers below
its own, and from its own folder."""

FOR_TYPES_ONLY = {("contracts", "distribution"), ("report", "graph")}
"""Arrows back that exist for the type checker alone and are never imported."""

DOORS = {"onnx": ("graph", "graph.*"), "onnx_ir": ("graph", "graph.*"), "onnxruntime": ("runtime",), "torch": ()}
"""Who may import a library; of torch, nobody."""

NUMBERS_ONLY = ("formats.*", "stats.*", "ranges.*", "roundings.*", "metrics.*", "distribution")
"""What works on arrays and must not know graphs."""


@dataclass(frozen=True)
class Arrow:
    """One import: `module` (a dotted name below qcli) imports `target` (a full dotted name)."""

    module: str
    target: str
    line: int
    typing: bool

    @property
    def own(self) -> str | None:
        """The module of qcli that it leads to, or None for a library."""
        below = self.target.removeprefix("qcli.")
        return below if below != self.target and below in MODULES else None

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = frozenset(FILES)


def arrows(module: str) -> Iterator[Arrow]:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for node, typing in _walk(tree, False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Arrow(module, alias.name, node.lineno, typing)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            assert node.level == 0, f"{module}:{node.lineno} is a relative import"
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                target = inner if inner.removeprefix("qcli.") in MODULES else source
                yield Arrow(module, target, node.lineno, typing)


def _walk(node: ast.AST, typing: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it lies under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        guard = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        yield child, typing or guard
        yield from _walk(child, typing or guard)


ALL = tuple(arrow for module in FILES for arrow in arrows(module))


def level(module: str) -> int:
    """The layer of a module, counted from the bottom."""
    fitting = [
        (len(pattern), depth)
        for depth, patterns in enumerate(LAYERS.values())
        for pattern in patterns
        if fnmatchcase(module, pattern) or (pattern.endswith(".*") and module == pattern[:-2])
    ]
    assert fitting, f"qcli/{module} has no place: give it one in LAYERS and in docs/architecture.md"
    return max(fitting)[1]


def _may(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def _room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", FILES)
def test_every_module_has_a_layer(module: str) -> None:
    level(module)


def test_no_arrow_leads_back() -> None:
    back = [
        f"{arrow} ({list(LAYERS)[level(arrow.module)]!r} -> {list(LAYERS)[level(arrow.own)]!r})"
        for arrow in ALL
        if arrow.own is not None
        and _room(arrow.module) != _room(arrow.own)
        and level(arrow.own) >= level(arrow.module)
        and not (arrow.typing and (arrow.module, _room(arrow.own)) in FOR_TYPES_ONLY)
    ]
    assert not back, "\n".join(back)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: {arrow.own for arrow in ALL if arrow.module == module} - {None} for module in FILES}
    for arrow in ALL:
        if arrow.typing and arrow.own is not None:
            graph[arrow.module].discard(arrow.own)
    for module, targets in graph.items():
        targets.discard(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("library", DOORS)
def test_one_door_per_library(library: str) -> None:
    through = [
        str(arrow)
        for arrow in ALL
        if arrow.target.partition(".")[0] == library and not arrow.typing and not _may(arrow.module, DOORS[library])
    ]
    assert not through, "\n".join(through)


def test_numerics_do_not_know_graphs() -> None:
    known = [
        str(arrow)
        for arrow in ALL
        if _may(arrow.module, NUMBERS_ONLY) and arrow.own is not None and _room(arrow.own) in ("graph", "runtime")
    ]
    assert not known, "\n".join(known)


def test_plugins_do_not_know_each_other() -> None:
    """A plug-in is reached by its name; what several of a folder share lies in files that begin with `_`."""
    from qcli.plugins import KINDS

    public = {module for module in FILES if _room(module) in KINDS and module.count(".") and "._" not in module}
    shared = {("stats.histogram", "stats.extrema")}
    known = [
        str(arrow)
        for arrow in ALL
        if arrow.module in public and arrow.own in public and (arrow.module, arrow.own) not in shared
    ]
    assert not known, "\n".join(known)


def test_the_architecture_page_shows_these_layers() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for layer, patterns in LAYERS.items():
        assert layer in page, f"docs/architecture.md lacks the layer '{layer}'"
        for pattern in patterns:
            assert f"`{pattern}`" in page, f"docs/architecture.md lacks '{pattern}'"


def test_everything_in_the_table_exists() -> None:
    for pattern in (pattern for patterns in LAYERS.values() for pattern in patterns):
        assert any(fnmatchcase(module, pattern) for module in FILES), f"nothing is called '{pattern}'"


def test_help_imports_no_heavy_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from qcli.cli import main; main(['--help']); "
        "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'PIL', 'torch'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
