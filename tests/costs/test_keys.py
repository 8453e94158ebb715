"""Equal nodes have equal keys; whatever changes the time changes the key."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from cost_graphs import conv, graph, with_bias
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.costs.graph_keys import conversions_of, keys_of_graph, standard_model
from qcli.costs.keys import conversion_key, key_of, modes_of
from qcli.costs.nouns import KernelKey, Mode, Operand, WeightForm
from qcli.graph import add_initializer, concrete_shapes, graph_of, make_node, set_constant
from qcli.graph.blank import add_input, add_output, blank_model

ATTRIBUTES = st.fixed_dictionaries(
    {
        "strides": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "dilations": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "group": st.sampled_from([1, 2, 4, 8]),
    }
)


def key(mode: Mode = Mode.FLOAT, threads: int = 1, **attributes: object) -> KernelKey:
    """That of a convolution."""
    node, shapes = conv(**attributes)
    found = key_of(node, mode, shapes, threads)
    assert found is not None
    return found


@settings(deadline=None)
@given(ATTRIBUTES)
def test_the_same_node_has_the_same_key(attributes: dict[str, object]) -> None:
    assert key(**attributes) == key(**attributes)
    assert hash(key(**attributes)) == hash(key(**attributes))


@settings(deadline=None)
@given(ATTRIBUTES, ATTRIBUTES)
def test_other_attributes_are_another_key(first: dict[str, object], second: dict[str, object]) -> None:
    assert (key(**first) == key(**second)) is (first == second)


@settings(deadline=None)
@given(ATTRIBUTES, st.sampled_from([Mode.FLOAT, Mode.STATIC, Mode.WEIGHT_ONLY]))
def test_a_key_survives_json(attributes: dict[str, object], mode: Mode) -> None:
    one = key(mode, **attributes)
    assert msgspec.json.decode(msgspec.json.encode(one), type=KernelKey) == one


@given(st.lists(st.integers(1, 9), max_size=4), st.lists(st.integers(1, 9), max_size=4))
def test_other_shapes_are_another_conversion(first: list[int], second: list[int]) -> None:
    keys = [conversion_key(Mode.QUANTIZE, tuple(shape), 1) for shape in (first, second)]
    assert (keys[0] == keys[1]) is (first == second)


def test_what_states_a_default_says_nothing() -> None:
    assert key() == key(strides=[1, 1], dilations=[1, 1], group=1, auto_pad="NOTSET")


def test_weights_do_not_count_by_their_values() -> None:
    node, shapes = conv()
    before = key_of(node, Mode.FLOAT, shapes, 1)
    set_constant(graph_of(node), node, 1, np.full((8, 8, 3, 3), 7, np.float32))
    assert key_of(node, Mode.FLOAT, shapes, 1) == before


def test_threads_and_modes_are_other_keys() -> None:
    assert len({key(), key(threads=2), key(Mode.STATIC), key(Mode.WEIGHT_ONLY)}) == 4


def test_the_form_of_weights_counts_where_they_are_decoded() -> None:
    node, shapes = graph("MatMul", ((4, 32),), ((32, 32),))
    packed = WeightForm(bits=4, block=16, decode="run")
    for mode in modes_of(node):
        same = key_of(node, mode, shapes, 1) == key_of(node, mode, shapes, 1, packed)
        assert same is (mode is not Mode.WEIGHT_ONLY)


def test_types_are_those_of_the_kernel() -> None:
    assert [item and item.type for item in key(Mode.FLOAT).inputs] == ["float32"] * 3
    assert [item and item.type for item in key(Mode.STATIC).inputs] == ["uint8", "int8", "int32"]
    assert [item and item.type for item in key(Mode.WEIGHT_ONLY).inputs] == ["float32"] * 3


@pytest.mark.parametrize(("declared", "kind"), [((1, 4, 8), "int32"), ((None, None, 8), "float32")])
def test_a_bias_behind_a_product_belongs_to_it(declared: tuple[int | None, ...], kind: str) -> None:
    model, node, shapes = with_bias((1, 4, 8), declared, (8, 16))
    found = key_of(node, Mode.STATIC, shapes, 1)
    assert found is not None
    assert found.inputs[2] == Operand(shape=(16,), type=kind, constant=True)
    assert list(keys_of_graph(model, shapes, 1)) == [node]  # the Add is no row of its own


def test_the_modes_of_operators() -> None:
    assert modes_of(conv()[0]) == (Mode.FLOAT, Mode.STATIC, Mode.WEIGHT_ONLY)
    assert modes_of(graph("Softmax", ((2, 8),))[0]) == (Mode.FLOAT,)
    product = modes_of(graph("MatMul", ((4, 32),), ((32, 32),))[0])
    assert {Mode.STATIC_FLOAT_RESULT, Mode.DYNAMIC} < set(product)
    assert Mode.DYNAMIC not in modes_of(graph("MatMul", ((2, 4, 8), (2, 8, 4)))[0])


def test_a_mode_that_a_node_lacks_has_no_key() -> None:
    node, shapes = graph("Softmax", ((2, 8),))
    assert key_of(node, Mode.STATIC, shapes, 1) is None
    assert key_of(node, Mode.QUANTIZE, shapes, 1) is None


def test_a_node_of_unknown_shape_has_no_key() -> None:
    node, _ = graph("Softmax", ((2, 8),))
    assert key_of(node, Mode.FLOAT, {}, 1) is None


def test_a_node_of_a_foreign_domain_has_no_key() -> None:
    model = blank_model(21)
    node = make_node("Own", [add_input(model, "x", "float32", (2,))], name="n", output="y", domain="my.domain")
    model.graph.append(node)
    assert modes_of(node) == ()
    assert key_of(node, Mode.FLOAT, {"x": (2,)}, 1) is None


@pytest.mark.parametrize("shape", [(1 << 41,), (-1,)])
def test_sizes_that_no_table_holds_have_no_key(shape: tuple[int, ...]) -> None:
    node, _ = graph("Softmax", ((2,),))
    assert key_of(node, Mode.FLOAT, {"x0": shape}, 1) is None


def test_long_names_have_no_key() -> None:
    model = blank_model(21)
    node = make_node("A" * 300, [add_input(model, "x", "float32", (2,))], name="n", output="y")
    model.graph.append(node)
    assert key_of(node, Mode.FLOAT, {"x": (2,)}, 1) is None


def test_attributes_that_are_no_numbers_have_no_key() -> None:
    node, shapes = graph("LeakyRelu", ((2, 8),), alpha=float("inf"))
    assert key_of(node, Mode.FLOAT, shapes, 1) is None


def test_static_needs_something_in_float() -> None:
    model = blank_model(21)
    inputs = [add_input(model, name, "int64", (2,)) for name in "ab"]
    node = make_node("Concat", inputs, name="n", output="y", attributes={"axis": 0})
    model.graph.append(node)
    shapes = {"a": (2,), "b": (2,)}
    assert key_of(node, Mode.STATIC, shapes, 1) is None
    assert key_of(node, Mode.FLOAT, shapes, 1) is not None


def test_constants_that_decide_count_by_their_values() -> None:
    keys = []
    for target in ([2, 4], [4, 2], [4, 2]):
        model = blank_model(21)
        source = add_input(model, "x", "float32", (8,))
        shape = add_initializer(model.graph, "shape", np.array(target, np.int64))
        node = make_node("Reshape", [source, shape], name="n", output="y")
        model.graph.append(node)
        add_output(model, node.outputs[0])
        keys.append(key_of(node, Mode.FLOAT, {"x": (8,)}, 1))
    assert keys[0] != keys[1] and keys[1] == keys[2]


def test_only_conversions_are_conversions() -> None:
    with pytest.raises(ValueError, match="no conversion"):
        conversion_key(Mode.STATIC, (1,), 1)


def test_the_standard_model_has_keys_for_all_of_its_nodes() -> None:
    model, feeds = standard_model()
    shapes = concrete_shapes(model, feeds)
    keys = keys_of_graph(model, shapes, 1)
    assert len(keys) == len(tuple(model.graph))
    conversions = conversions_of(keys, shapes, 1)
    assert len(set(conversions)) == len(conversions) > 2
    assert {one.mode for one in conversions} == {Mode.QUANTIZE, Mode.DEQUANTIZE}


def test_a_vector_of_indices_counts_by_its_length_alone() -> None:
    keys = []
    for start in (0, 5):
        model = blank_model(21)
        indices = add_initializer(model.graph, "i", np.arange(start, start + 100, dtype=np.int64))
        node = make_node("Gather", [add_input(model, "x", "float32", (200, 4)), indices], name="n", output="y")
        model.graph.append(node)
        keys.append(key_of(node, Mode.FLOAT, {"x": (200, 4)}, 1))
    assert keys[0] is not None and keys[0] == keys[1]
