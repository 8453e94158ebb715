"""Names that onnxruntime gives to what it fuses, led back to the nodes of the float model."""

from __future__ import annotations

import pytest
from conftest import model_path

from qcli.graph import Model, load_model
from qcli.graph.optimized import OptimizedGraph, RuntimeNode
from qcli.tracing import Matches, match_nodes


@pytest.fixture(scope="module")
def cnn() -> Model:
    return load_model(model_path("cnn"))


def running(op: str, name: str = "", **options: object) -> RuntimeNode:
    base = {"domain": "", "inputs": (), "outputs": ("?",), "integers": {}, "nested": False}
    return RuntimeNode(op=op, name=name, **{**base, **options})  # type: ignore[arg-type]


def traced(model: Model, *nodes: RuntimeNode, weights: dict[str, tuple[int, ...]] | None = None) -> Matches:
    return match_nodes(list(nodes), model, OptimizedGraph(nodes=nodes, weights=weights or {}, shapes={}))


def found(matches: Matches) -> list[str | None]:
    return [node.name for node, items in matches.pairs.items() if items]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (running("Gemm", "/head"), "/head"),
        (running("QLinearConv", "/stem/conv_token_1"), "/stem/conv"),
        (running("ConvInteger", "/mix/conv_quant"), "/mix/conv"),
        (running("Conv", "/stem/relu_output_nchwc", domain="com.microsoft.nchwc"), "/stem/conv"),
        (running("Conv", "/residual/project/norm_output_nchwc"), "/residual/project/conv"),
        (running("FusedConv", "fused ", outputs=("/mix/relu_output",)), "/mix/conv"),
        (running("QLinearConv", outputs=("/mix/conv_output_QuantizeLinear_Output",)), "/mix/conv"),
        (running("QLinearConv", inputs=("x", "s", "mix.conv.weight_quantized")), "/mix/conv"),
        (running("Conv", inputs=("x", "mix.conv.weight")), "/mix/conv"),
    ],
)
def test_every_way_of_naming(cnn: Model, node: RuntimeNode, expected: str) -> None:
    matches = traced(cnn, node)
    assert found(matches) == [expected]
    assert matches.unmatched == []


@pytest.mark.parametrize(
    "node",
    [
        running("Gemm", "/stem/conv"),  # another kind of operator
        running("QLinearConv", "/stem/conveyor"),  # another word
        running("QLinearConv", "/st"),
        running("QLinearConv"),
    ],
)
def test_no_wild_guesses(cnn: Model, node: RuntimeNode) -> None:
    matches = traced(cnn, node)
    assert found(matches) == []
    assert matches.unmatched == [node]


def test_a_name_whose_weight_has_another_size_is_no_match(cnn: Model) -> None:
    node = running("QLinearConv", "/stem/conv", inputs=("x", "w"))
    assert found(traced(cnn, node, weights={"w": (5, 5, 3, 3)})) == []


def test_the_only_weight_of_a_size_is_enough(cnn: Model) -> None:
    head = next(node for node in cnn.graph if node.name == "/head")
    shape = tuple(head.inputs[1].const_value.shape.numpy())  # type: ignore[union-attr]
    node = running("QGemm", "gemm 17", inputs=("x", "renamed"))
    assert found(traced(cnn, node, weights={"renamed": shape})) == ["/head"]
    twin = running("QGemm", "gemm 18", inputs=("x", "renamed"))
    assert found(traced(cnn, node, twin, weights={"renamed": shape})) == [], "two that fit leave a choice"


def test_an_exact_name_goes_before_another_nodes_prefix(cnn: Model) -> None:
    prefix, exact = running("QLinearConv", "/stem/conv_token_1"), running("Conv", "/stem/conv")
    matches = traced(cnn, prefix, exact)
    [items] = [items for items in matches.pairs.values() if items]
    assert items == [exact, prefix]
