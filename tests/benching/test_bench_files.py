"""The forms of a comparison: what is in one is in the others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from qcli.benching.files import columns, node_columns, write_bench
from qcli.benching.nouns import BenchReport, BenchRow
from qcli.errors import UsageError
from qcli.node_costs import NodeCost


def row(path: str, threads: int, memory: float | None = None) -> BenchRow:
    return BenchRow(
        path=path, bytes=1234, threads=threads, rounds=16, ms=2.0, spread_ms=0.5, fastest_ms=1.0, slowest_ms=4.0,
        outliers=0.25, speedup=1.0, peak_memory_mb=memory, base_memory_mb=memory,
    )  # fmt: skip


def cost(number: int) -> NodeCost:
    return NodeCost(
        node=f"/conv|{number}",
        output=f"c{number}",
        op="Conv",
        ms=(2.0, 1.0),
        conversions_ms=(0.0, 0.25),
        ratios=(1.0, None),
        sources=(f"c{number}", f"r{number}"),
    )


REPORT = BenchReport(
    models=(row("a/m.onnx", 1), row("b/m.onnx", 1), row("a/m.onnx", 4), row("b/m.onnx", 4)),
    rounds=16,
    threads=1,
    samples=3,
    invented_samples=False,
    nodes=tuple(map(cost, range(30))),
    warnings=("use a *quiet* machine",),
)


def written(report: BenchReport, folder: Path, suffix: str) -> str:
    write_bench(report, folder / f"bench{suffix}")
    return (folder / f"bench{suffix}").read_text(encoding="utf-8")


def test_json_holds_all_of_it(tmp_path: Path) -> None:
    seen = json.loads(written(REPORT, tmp_path, ".json"))
    assert list(seen) == [
        "schema", "command", "models", "rounds", "threads", "samples", "invented_samples", "nodes", "warnings",
    ]  # fmt: skip
    assert {"path", "bytes", "ms", "spread_ms", "speedup", "threads"} <= set(seen["models"][0])
    assert len(seen["nodes"]) == 30


def test_csv_has_a_line_for_each_model_and_for_each_node_in_it(tmp_path: Path) -> None:
    lines = list(csv.DictReader(written(REPORT, tmp_path, ".csv").splitlines()))
    assert [line["kind"] for line in lines] == ["model"] * 4 + ["node"] * 60
    assert (lines[0]["path"], lines[0]["ms"], lines[0]["peak_memory_mb"]) == ("a/m.onnx", "2.0", "")
    node = lines[5]
    assert (node["path"], node["node"], node["ms"], node["speedup"], node["threads"]) == (
        "b/m.onnx", "/conv|0", "1.0", "", "1",
    )  # fmt: skip
    assert (node["sources"], node["conversions_ms"]) == ("c0 r0", "0.25")


def test_markdown_has_whole_tables(tmp_path: Path) -> None:
    text = written(REPORT, tmp_path, ".md")
    assert "| `/conv\\|29` | Conv | 2.000 | 1.000 |  |" in text
    assert "16 rounds, samples: 3" in text
    assert "* use a \\*quiet\\* machine" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1, "every line has as many cells"


def test_columns_say_what_there_is() -> None:
    assert columns(REPORT) == ("model", "bytes", "threads", "ms", "spread", "speed")
    weighed = BenchReport(models=(row("m.onnx", 1, 70.0),), rounds=16, threads=1, samples=1, invented_samples=True)
    assert columns(weighed)[-1] == "memory"
    assert node_columns(REPORT) == ("node", "operator", "a/m.onnx", "b/m.onnx", "speed"), "names that tell them apart"
    assert node_columns(weighed) == ("node", "operator", "m.onnx")


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_bench(REPORT, tmp_path / "bench.xml")
    assert ".json .csv .md" in caught.value.hint
