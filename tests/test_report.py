from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import model_path

from qcli.errors import InputError
from qcli.graph import load_model
from qcli.report import (
    Accuracy,
    ConversionFacts,
    FileFacts,
    FloatNode,
    GateResult,
    KernelFacts,
    LatencyFacts,
    OutputAccuracy,
    Report,
    Scores,
    Seconds,
    cpu_name,
    encode_report,
    environment,
    file_facts,
    peak_memory_mb,
    size_of,
    with_gates,
)

KEYS = [
    "schema", "command", "status", "model", "output", "recipe", "samples", "plan", "fallback", "conversion", "size",
    "accuracy", "kernels", "latency", "memory", "gates", "warnings", "seconds", "peak_memory_mb", "environment",
]  # fmt: skip


def decoded(report: msgspec.Struct) -> dict[str, object]:
    data: dict[str, object] = json.loads(encode_report(report))
    return data


def test_every_key_is_there_and_null_where_nothing_was_measured() -> None:
    data = decoded(Report(command="quantize"))
    assert list(data) == KEYS
    assert data["schema"] == 1
    assert data["status"] == "passed"
    assert data["gates"] == data["warnings"] == []
    assert all(data[key] is None for key in KEYS if key not in ("schema", "command", "status", "gates", "warnings"))


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        (FileFacts(path="m", sha256="0", bytes=1, opset=17, nodes=2, parameters=3),
         ["path", "sha256", "bytes", "opset", "nodes", "parameters"]),
        (Accuracy(), ["sqnr", "cosine", "agreement", "top1", "top5", "perplexity", "nll", "outputs"]),
        (OutputAccuracy(), ["sqnr", "cosine", "max_abs", "equal"]),
        (Scores(float_=1, quantized=1, drop=0), ["float", "quantized", "drop"]),
        (KernelFacts(integer=1, float_=0, integer_share=1, by_kernel={}),
         ["integer", "float", "integer_share", "by_kernel", "kept_float", "agreement_with_unoptimized"]),
        (ConversionFacts(to="float16", io="keep", nodes=1), ["to", "io", "nodes", "kept_float", "samples", "sqnr"]),
        (FloatNode(node="n", op="Gemm", reason="", mac_share=0.5), ["node", "op", "reason", "mac_share"]),
        (LatencyFacts(float_ms=2, ms=1, speedup=2, threads=1), ["float_ms", "ms", "speedup", "threads"]),
        (GateResult(gate="g", value=1, passed=True), ["gate", "value", "passed"]),
        (Seconds(), ["prepare", "fallback", "calibrate", "solve", "apply", "validate", "total"]),
    ],
)  # fmt: skip
def test_the_keys_of_each_section_are_public(section: msgspec.Struct, keys: list[str]) -> None:
    assert list(decoded(section)) == keys


def test_json_is_the_same_every_time_and_reads_back() -> None:
    kernels = KernelFacts(integer=3, float_=0, integer_share=1.0, by_kernel={"QLinearConv": 2, "Add": 1})
    report = Report(command="validate", kernels=kernels)
    encoded = encode_report(report)
    assert encoded == encode_report(report)
    assert encoded.endswith(b"}\n")
    assert b'"by_kernel": {\n      "QLinearConv": 2,\n      "Add": 1\n    }' in encoded
    assert msgspec.json.decode(encoded, type=Report) == report


def test_facts_of_a_file() -> None:
    path = model_path("mlp")
    facts = file_facts(path)
    model = onnx.load(path)
    assert facts.path == str(path)
    assert facts.sha256 == sha256(path.read_bytes()).hexdigest()
    assert facts.bytes == path.stat().st_size
    assert facts.opset == 17
    assert facts.nodes == len(model.graph.node)
    assert facts.parameters == sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert file_facts(path, load_model(path)) == facts


def test_external_data_counts(tmp_path: Path) -> None:
    onnx.save(
        onnx.load(model_path("mlp")),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    path, data = tmp_path / "m.onnx", tmp_path / "m.data"
    facts = file_facts(path)
    assert facts.bytes == path.stat().st_size + data.stat().st_size > data.stat().st_size > 60_000
    assert facts.sha256 != sha256(path.read_bytes()).hexdigest()


def test_facts_of_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        file_facts(tmp_path / "none.onnx")


def test_size_ratio() -> None:
    facts = file_facts(model_path("mlp"))
    size = size_of(facts, msgspec.structs.replace(facts, bytes=facts.bytes // 4))
    assert size.ratio == size.bytes / size.float_bytes
    assert size.ratio == pytest.approx(0.25)


def test_environment_says_what_the_figures_are_true_for() -> None:
    found = environment()
    assert (found.numpy, found.onnx) == (np.__version__, onnx.__version__)
    assert found.onnxruntime == onnxruntime.__version__
    assert found.python == ".".join(str(part) for part in sys.version_info[:3])
    assert found.isa in ("avx2", "vnni", "arm64")
    assert found.cpu == cpu_name() != ""
    assert found.qcli


def test_peak_memory_is_in_megabytes() -> None:
    before = peak_memory_mb()
    assert before is not None
    assert 10 < before < 100_000
    block = np.ones(25_000_000, np.float64)  # 200 MB
    after = peak_memory_mb()
    assert after is not None
    assert after >= before
    assert after >= block.nbytes / 1e6


def test_gates_decide_the_status() -> None:
    report = Report(command="validate")
    good, bad = (GateResult(gate="size.ratio <= 1", value=0.5, passed=passed) for passed in (True, False))
    assert with_gates(report, (good,)).status == "passed"
    assert with_gates(report, (good, bad)).status == "failed"
    assert with_gates(report, (good, bad)).gates == (good, bad)


@pytest.mark.parametrize("module", ["qcli.report", "qcli.gates", "qcli.render"])
def test_importing_is_light(module: str) -> None:
    """`qcli --help` may need these, and must not wait for the large libraries."""
    large = {"onnx", "onnx_ir", "onnxruntime"}
    script = f"import sys, {module}; print(sorted({large} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
