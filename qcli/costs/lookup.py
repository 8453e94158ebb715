"""The costs of keys: from a table of another machine, else from the cache, else measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qcli.costs.kept import find_costs, keep_costs, this_machine
from qcli.costs.measuring import measure_kernels
from qcli.costs.nouns import CostTable, KernelCost, KernelKey
from qcli.costs.table_file import read_table
from qcli.errors import UsageError
from qcli.runtime import runtime_version
from qcli.watch import Watch


def costs_for(
    keys: Iterable[KernelKey], threads: int, table: CostTable | None = None, watch: Watch | None = None
) -> CostTable:
    """A table with a row for each key; what is measured is kept for the next run.

    With the `table` of another machine nothing is measured, and what it lacks has no row: how much faster integers are
    there is what this machine cannot tell. A warning counts them. Raises UsageError if the table is for another number
    of threads.
    """
    watch = watch or Watch()
    wanted = tuple(dict.fromkeys(keys))
    odd = next((key for key in wanted if key.threads != threads), None)
    if odd is not None:
        raise ValueError(f"a key for {odd.threads} threads among those for {threads}")
    if table is not None:
        return _looked_up(wanted, threads, table, watch)
    environment = this_machine(threads)
    known = find_costs(environment)
    missing = tuple(key for key in wanted if key not in known)
    if missing:
        watch.phase("measure kernels")
        known |= _measured(missing, threads, watch)
    return CostTable(environment=environment, rows=tuple(known[key] for key in wanted))


def _measured(keys: tuple[KernelKey, ...], threads: int, watch: Watch) -> dict[KernelKey, KernelCost]:
    """Measures, and keeps what was measured so far if something interrupts."""
    found: dict[KernelKey, KernelCost] = {}
    try:
        for cost in measure_kernels(keys, watch):
            found[cost.key] = cost
    finally:
        keep_costs(this_machine(threads), [row for row in found.values() if row.ms is not None])
    return found


def _looked_up(wanted: tuple[KernelKey, ...], threads: int, table: CostTable, watch: Watch) -> CostTable:
    if table.environment.threads != threads:
        problem = f"the cost table is for {table.environment.threads} threads, not for {threads}"
        raise UsageError(problem, f"run with --threads {table.environment.threads}, or measure a table for {threads}")
    missing = table.missing(wanted)
    if missing:
        watch.warn(f"the cost table lacks {len(missing)} of {len(wanted)} kernels, which count as unknown")
    rows = tuple(row for key in wanted if (row := table.cost(key)) is not None)
    return CostTable(environment=table.environment, rows=rows)


def load_costs(path: Path, watch: Watch) -> CostTable:
    """A table that was measured elsewhere, with a warning if that was another onnxruntime. Raises UsageError."""
    table = read_table(path)
    here = runtime_version()
    if table.environment.onnxruntime != here:
        watch.warn(f"cost table '{path}' was measured with onnxruntime {table.environment.onnxruntime}, this is {here}")
    return table
