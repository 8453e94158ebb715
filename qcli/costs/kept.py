"""Measured costs kept from one run to the next: one file for each machine, onnxruntime and number of threads."""

from __future__ import annotations

from collections.abc import Iterable

from qcli.cache import find_document, keep_document, key_of_facts
from qcli.costs.nouns import SCHEMA, CostEnvironment, CostTable, KernelCost, KernelKey
from qcli.costs.table_file import encode_table, parse_table
from qcli.errors import UsageError
from qcli.report import cpu_name
from qcli.runtime import runtime_version
from qcli.targets.ort_cpu import detect_isa

_MOST_ROWS = 20_000
"""Kept; those measured first go first."""


def this_machine(threads: int) -> CostEnvironment:
    """What costs measured here are true for."""
    return CostEnvironment(cpu=cpu_name(), isa=detect_isa(), onnxruntime=runtime_version(), threads=threads)


def find_costs(environment: CostEnvironment) -> dict[KernelKey, KernelCost]:
    """What was measured before. A damaged file counts as none."""
    content = find_document(_name(environment))
    if content is None:
        return {}
    try:
        table = parse_table(content, "the cache")
    except UsageError:
        return {}
    return {row.key: row for row in table.rows} if table.environment == environment else {}


def keep_costs(environment: CostEnvironment, rows: Iterable[KernelCost]) -> None:
    """Adds rows to those that are kept, whoever wrote them meanwhile; the file is replaced as a whole.

    If two runs write at the same moment the rows of one of them may be lost, and are measured again.
    """
    joined = find_costs(environment) | {row.key: row for row in rows}
    table = CostTable(environment=environment, rows=tuple(joined.values())[-_MOST_ROWS:])
    keep_document(_name(environment), encode_table(table))


def _name(environment: CostEnvironment) -> str:
    return f"kernels-{key_of_facts([SCHEMA, environment])}"
