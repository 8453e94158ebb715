"""A table as a file: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcli.costs.keys import conversion_key
from qcli.costs.nouns import CostEnvironment, CostTable, KernelCost, KernelKey, Mode, Operand
from qcli.costs.table_file import encode_table, parse_table, read_table, write_table
from qcli.errors import UsageError

HERE = CostEnvironment(cpu="a processor", isa="vnni", onnxruntime="1.31.1", threads=1)
KEY = conversion_key(Mode.QUANTIZE, (2, 3), 1)
TABLE = CostTable(environment=HERE, rows=(KernelCost(key=KEY, ms=0.5, spread_ms=0.1, kernel="QuantizeLinear"),))

NUMBERS = st.floats(0, 1e9, allow_nan=False)
NAMES = st.text("abcdefXYZ_", min_size=1, max_size=9)
VALUES = st.one_of(st.integers(-9, 9), st.floats(-9, 9), NAMES, st.lists(st.integers(-9, 9), max_size=4).map(tuple))
OPERANDS = st.builds(
    Operand,
    shape=st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple),
    type=NAMES,
    constant=st.booleans(),
    values=st.none() | st.lists(st.integers(-9, 9) | st.floats(-9, 9), max_size=3).map(tuple),
)
KEYS = st.builds(
    KernelKey,
    op=NAMES,
    mode=st.sampled_from(Mode),
    inputs=st.lists(st.none() | OPERANDS, max_size=3).map(tuple),
    attributes=st.dictionaries(NAMES, VALUES, max_size=3).map(lambda found: tuple(sorted(found.items()))),
    opset=st.integers(1, 30),
)
ROWS = st.builds(KernelCost, key=KEYS, ms=st.none() | NUMBERS, spread_ms=NUMBERS, layout_ms=NUMBERS, kernel=NAMES)


@given(st.lists(ROWS, max_size=4))
def test_what_is_written_is_read(rows: list[KernelCost]) -> None:
    table = CostTable(environment=HERE, rows=tuple(rows))
    assert parse_table(encode_table(table), "it") == table


def test_a_file_survives(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "table.json")
    found = read_table(tmp_path / "table.json")
    assert found == TABLE
    assert found.ms(KEY) == 0.5
    assert found.cost(KEY) == TABLE.rows[0]


def test_a_file_has_a_row_a_line() -> None:
    table = CostTable(environment=HERE, rows=TABLE.rows * 3)
    lines = encode_table(table).decode().splitlines()
    assert len(lines) == 5
    assert json.loads("".join(lines))["schema"] == 1


def test_what_is_missing() -> None:
    other = conversion_key(Mode.DEQUANTIZE, (2, 3), 1)
    assert TABLE.missing([other, KEY, other]) == (other,)
    assert TABLE.ms(other) is None and TABLE.cost(other) is None
    assert TABLE.ms(None) is None


def changed(**changes: Any) -> bytes:
    """The table with other values in its row."""
    data = json.loads(encode_table(TABLE))
    data["rows"][0] |= changes
    return json.dumps(data).encode()


BAD = {
    "empty": b"",
    "no JSON": b"rows: none",
    "cut short": encode_table(TABLE)[:-20],
    "a list": b"[]",
    "no schema": b"{}",
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "unknown field": changed(wheels=4),
    "NaN": changed(ms=float("nan")),
    "infinite": changed(ms=float("inf")),
    "negative": changed(ms=-0.5),
    "huge": changed(ms=1e300),
    "too huge for a number": changed(ms=1).replace(b'"ms": 1', b'"ms": 1e999'),
    "text": changed(ms="fast"),
    "negative spread": changed(spread_ms=-1),
    "no key": changed(key=None),
    "long name": changed(kernel="x" * 3000),
    "unknown mode": encode_table(TABLE).replace(b'"quantize"', b'"magic"'),
    "negative size": encode_table(TABLE).replace(b"[2,3]", b"[-2,3]"),
    "other threads": encode_table(TABLE).replace(b'"1.31.1","threads":1', b'"1.31.1","threads":4'),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_table(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(b'{"schema": 7, "whatever": true}')
    with pytest.raises(UsageError, match="schema 7, this qcli reads 1"):
        read_table(path)


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcli.costs.table_file._MOST_BYTES", 1 << 20)
    (tmp_path / "table.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        read_table(tmp_path / "table.json")


@pytest.mark.parametrize("name", ["none.json", "."])
def test_what_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path / name)
