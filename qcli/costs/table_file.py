"""A cost table as a file: JSON, written on one machine and read on another."""

from __future__ import annotations

from pathlib import Path

import msgspec

from qcli.costs.nouns import SCHEMA, CostTable
from qcli.errors import UsageError
from qcli.files import replace_file

_MOST_BYTES = 64 << 20
_HINT = "measure one with 'qcli doctor --kernels MODEL --save FILE'"


class _Head(msgspec.Struct):
    """What every version of the file has."""

    schema: int


def write_table(table: CostTable, path: Path) -> None:
    """Raises UsageError for a place that cannot be written."""
    replace_file(path, encode_table(table))


def encode_table(table: CostTable) -> bytes:
    """JSON with a row a line."""
    head, rows = msgspec.structs.replace(table, rows=()), [msgspec.json.encode(row) for row in table.rows]
    return msgspec.json.encode(head).removesuffix(b"]}") + b"\n" + b",\n".join(rows) + b"\n]}\n"


def read_table(path: Path) -> CostTable:
    """Raises UsageError for what is no cost table, or one of another schema."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"cost table '{path}' is larger than {_MOST_BYTES >> 20} MiB", _HINT)
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cost table '{path}' cannot be read: {error.strerror}", _HINT) from error
    return parse_table(content, f"cost table '{path}'")


def parse_table(content: bytes, what: str) -> CostTable:
    """A table from its file's content. Raises UsageError that begins with `what`."""
    try:
        schema = msgspec.json.decode(content, type=_Head).schema
        if schema != SCHEMA:
            hint = "measure it again with this version of qcli: 'qcli doctor --kernels MODEL --save FILE'"
            raise UsageError(f"{what} has schema {schema}, this qcli reads {SCHEMA}", hint)
        table = msgspec.json.decode(content, type=CostTable)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{what} is none: {' '.join(str(error).split())}", _HINT) from error
    threads = {row.key.threads for row in table.rows} - {table.environment.threads}
    if threads:
        problem = f"{what} is for {table.environment.threads} threads, but has rows for {min(threads)}"
        raise UsageError(problem, _HINT)
    return table
