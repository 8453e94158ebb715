"""Making a plan: which sites get which grid, because of which rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from qcli.configure import convert
from qcli.errors import NothingToDoError, UsageError
from qcli.fitting import check_ranges, check_rules
from qcli.granularity import check_layout, laid_out, no_blocks
from qcli.graph import Model, Node, constant_of, dimensions, infer_shapes, is_constant, node_key, original_name
from qcli.layers import LAYERS, bias_layer, input_axis, output_channel_axis, weight_operands
from qcli.legality import no_form
from qcli.matching import RuleBook
from qcli.opsets import required_opset
from qcli.placement import NOTHING_UNFIT, Layout, Placed, Unfit, place
from qcli.plugins import choice_of, create
from qcli.recipe import Recipe
from qcli.stored import Stored, described, store_weights
from qcli.suitability import check_entries, multiplied_there, refuse_operators, refuse_version, stored_there
from qcli.targets._support import traits_of
from qcli.types import Entry, Grid, KeptFloat, Plan, Role, Site, Spec, Tie
from qcli.yaml_file import read_yaml, write_yaml

_VERSION = 1
_LISTED = 3

BIAS_GRID = Grid(format="int32", symmetric=True, granularity="channel")
"""A bias is stored as int32 with the scale s_x * s_w of the product that it is added to."""


def make_plan(model: Model, recipe: Recipe, unfit: Unfit = NOTHING_UNFIT) -> Plan:
    """The plan for a prepared model. Needs no data; `unfit` is what samples showed to lie beyond a static grid.

    Raises UsageError for a rule of the user's that matches nothing or asks for what the target cannot run,
    NothingToDoError if nothing can be quantized. What is quantized already stays as it is.
    """
    opset = max(required_opset(recipe), model.opset)
    refuse_version(model, recipe.target, opset)
    refuse_operators(model, recipe.target)
    infer_shapes(model)
    target = create("targets", recipe.target)
    rules = RuleBook(model, recipe)
    layout = place(model, target, rules, unfit)
    static = tuple(_entries(layout, rules))
    traits = traits_of(target)
    if not traits.wide_biases:
        static = _with_exact_biases(static, layout)
    static = tuple(multiplied_there(entry, traits) for entry in static)
    stored = store_weights(model, rules, static, unfit.nodes)
    kept, unstored = stored_there(stored.entries, recipe.target)
    stored = Stored(kept, {**stored.reasons, **unstored})
    entries = (*static, *stored.entries)
    integer = {entry.site.node for entry in stored.entries if create("encodings", entry.encoding).multiplies}
    kept_float = tuple(described(kept, stored) for kept in layout.kept if kept.node not in integer)
    if not entries and recipe.convert is None:
        raise NothingToDoError("nothing in this model can be quantized", _why_nothing(kept_float, stored))
    check_entries(entries, recipe.target)
    check_ranges(entries)
    if unfit is NOTHING_UNFIT:
        check_rules(recipe, entries)
    return Plan(
        model_sha256=model.sha256,
        target=recipe.target,
        opset=opset,
        entries=entries,
        ties=tuple(_ties(layout)),
        kept_float=kept_float,
    )


def _why_nothing(kept_float: tuple[KeptFloat, ...], stored: Stored) -> str:
    """The reasons of the nodes that have weights, since only they could gain anything."""
    weighted = [kept for kept in kept_float if kept.node in stored.reasons or kept.op in LAYERS]
    if not weighted:
        return "no operator of it has float weights"
    reasons = dict.fromkeys(f"{kept.op} '{kept.name or kept.node}': {kept.reason}" for kept in weighted)
    listed = tuple(reasons)[:_LISTED]
    return "; ".join(listed) + (f"; and {len(reasons) - len(listed)} more" if len(reasons) > len(listed) else "")


def read_plan(path: Path) -> Plan:
    """A plan from its file. Raises UsageError that names the key."""
    plan = convert(read_yaml(path, "plan"), Plan, where=f"plan '{path}'")
    if plan.version != _VERSION:
        raise UsageError(f"plan '{path}' has version {plan.version}", f"this qcli reads version {_VERSION}")
    return plan


def plan_text(plan: Plan) -> str:
    """The file form of a plan: YAML, without the defaults."""
    return write_yaml(_plain(plan))


def check_plan(plan: Plan, model: Model, *, may_be_empty: bool = False) -> None:
    """Raises UsageError if a plan was made for another model or names nodes that this one lacks."""
    if plan.model_sha256 != model.sha256:
        raise UsageError("the plan was made for another model", "make it again with 'qcli plan'")
    if not plan.entries and not may_be_empty:
        raise NothingToDoError("the plan has no entries", "make it again with 'qcli plan'")
    check_entries(plan.entries, plan.target)
    check_ranges(plan.entries)
    nodes = {node_key(node): node for node in model.nodes()}
    seen: set[tuple[str, Role, int]] = set()
    for entry in plan.entries:
        _check_site(entry.site, nodes.get(entry.site.node))
        _check_axis(entry, nodes[entry.site.node])
        key = (entry.site.node, entry.site.role, entry.site.operand)
        if key in seen:
            problem = (
                f"the plan has two entries for {entry.site.role.value} {entry.site.operand} of '{entry.site.node}'"
            )
            raise UsageError(problem, "keep one of them")
        seen.add(key)
    for entry in plan.entries:
        _check_encoding(entry, plan, nodes[entry.site.node])
        if entry.site.role is Role.BIAS:
            _check_bias(plan, entry.site, nodes[entry.site.node])


def _check_site(site: Site, node: Node | None) -> None:
    if node is None:
        raise UsageError(f"the plan names the node '{site.node}', which the model lacks", "make it again")
    values = node.outputs if site.role is Role.OUTPUT else node.inputs
    value = values[site.operand] if 0 <= site.operand < len(values) else None
    if value is None or value.name != site.value:
        raise UsageError(
            f"'{site.value}' is not {site.role.value} {site.operand} of '{site.node}'", "make the plan again"
        )


def _check_axis(entry: Entry, node: Node) -> None:
    """Channels of a weight are those of the outputs: any other axis is out of range, or silently worse."""
    site, axis = entry.site, entry.grid.axis
    check_layout(entry.grid, f"plan: '{site.value}' of '{site.node}'")
    if site.role is Role.WEIGHT and entry.grid.block is not None:
        _check_blocks(entry, node)
        return
    if site.role is not Role.WEIGHT or axis is None:
        return
    sensible = {known for operand, known in weight_operands(node) if operand == site.operand}
    if site.operand == 1 and node.op_type in LAYERS:
        sensible.add(output_channel_axis(node))
    if entry.grid.granularity != "channel" or axis not in sensible:
        wanted = ", ".join(sorted(str(known) for known in sensible if known is not None)) or "no axis"
        problem = f"the plan scales the weight '{site.value}' along axis {axis}; its output channels lie along {wanted}"
        raise UsageError(problem, "correct 'axis' and 'granularity' of its grid, or make the plan again")


def _check_blocks(entry: Entry, node: Node) -> None:
    """Blocks lie along the axis that the operator sums over, and no static kernel multiplies them."""
    site = entry.site
    array = constant_of(node.inputs[site.operand])
    shape = array.shape if array is not None else ()
    problem = no_blocks(node, site.operand, shape, entry.grid.block)
    axis = input_axis(node, site.operand, len(shape))
    if problem is None and entry.grid.axis != axis:
        problem = f"blocks lie along axis {axis}, not {entry.grid.axis}"
    if problem is None and create("encodings", entry.encoding).calibrated:
        problem = f"no static kernel multiplies blocks, as the encoding '{choice_of(entry.encoding).name}' wants it"
    if problem is not None:
        hint = "correct its grid, take the encoding weight_only, or make the plan again"
        raise UsageError(f"plan: '{site.value}' of '{site.node}': {problem}", hint)


def _check_encoding(entry: Entry, plan: Plan, node: Node) -> None:
    """Raises UsageError for an encoding that the value or its node cannot have."""
    site, name = entry.site, choice_of(entry.encoding).name
    value = node.outputs[site.operand] if site.role is Role.OUTPUT else node.inputs[site.operand]
    constant = constant_of(value)
    problem: str | None = None
    if value is not None and value.dtype is not None and value.dtype.numpy().name != "float32":
        problem = "is not float32"
    elif site.role in (Role.WEIGHT, Role.BIAS) and (constant is None or constant.size == 0):
        problem = "is not constant"
    elif site.role is not Role.WEIGHT and not create("encodings", entry.encoding).calibrated:
        problem = f"is an activation or a bias, which the encoding '{name}' does not take"
    if problem is None and site.role is Role.WEIGHT:
        alike = [item.site for item in plan.entries if choice_of(item.encoding).name == name]
        same = [other.operand for other in alike if other.node == site.node]
        reason = no_form(entry, node, [operand for operand, _ in weight_operands(node) if operand in same])
        problem = f"cannot have the encoding '{name}': {reason}" if reason is not None else None
    if problem is not None:
        raise UsageError(f"plan: '{site.value}' of '{site.node}' {problem}", "change its entry, or make the plan again")


def _check_bias(plan: Plan, site: Site, reader: Node) -> None:
    """A bias in integers needs the scales of its layer's weight and input."""
    layer = bias_layer(reader, site.operand)
    data = layer.inputs[0] if layer is not None and layer.inputs else None
    weighted = {entry.site.node for entry in plan.entries if entry.site.role is Role.WEIGHT}
    scaled = {entry.site.value for entry in plan.entries if entry.site.role in (Role.INPUT, Role.OUTPUT)}
    if layer is None or data is None or node_key(layer) not in weighted or data.name not in scaled:
        problem = f"the plan has an entry for the bias '{site.value}' but not for its layer's weight and input"
        raise UsageError(problem, "leave out the bias too")


def _plain(noun: Any) -> Any:
    """A noun as plain data in which fields at their default are left out."""
    if isinstance(noun, msgspec.Struct):
        plain = {}
        for item in msgspec.structs.fields(noun):
            value = getattr(noun, item.name)
            if item.required or value != item.default:
                plain[item.encode_name] = _plain(value)
        return plain
    if isinstance(noun, (tuple, list)):
        return [_plain(item) for item in noun]
    return msgspec.to_builtins(noun)


def _entries(layout: Layout, rules: RuleBook) -> Iterator[Entry]:
    quantized = {value for placed in layout.placed.values() if placed.quantize_output for value in placed.results}
    for placed in layout.placed.values():
        for operand in placed.operands:
            value = placed.node.inputs[operand]
            if value not in quantized or value.graph is not placed.node.graph or placed.floats:
                yield rules.entry(_site(placed.node, operand, Role.INPUT))
        yield from _constant_entries(placed, rules)
        if placed.quantize_output:
            yield from (_output_entry(placed, rules, part) for part in range(len(placed.results)))


def _constant_entries(placed: Placed, rules: RuleBook) -> Iterator[Entry]:
    """The weight and the bias, or the constant operand of an elementwise operator."""
    node, support = placed.node, placed.support
    if support.weight is not None:
        entry = rules.entry(_site(node, support.weight, Role.WEIGHT))
        yield laid_out(entry, node, tuple(size or 0 for size in entry.site.shape or ()), output_channel_axis(node))
    elif support.data is None:
        for operand, value in enumerate(node.inputs):
            if value is not None and is_constant(value):
                yield rules.entry(_site(node, operand, Role.INPUT))
    if placed.bias is not None:
        reader, operand = placed.bias
        because = "int32 with the scale of the product that it is added to"
        site = rules.placed(_site(reader, operand, Role.BIAS))
        yield Entry(site=site, grid=BIAS_GRID, range="minmax", because=because)


def _output_entry(placed: Placed, rules: RuleBook, part: int) -> Entry:
    producer = placed.tail[-1] if placed.tail else placed.node
    entry = rules.entry(_site(producer, part, Role.OUTPUT, op=placed.node.op_type), placed.node)
    natural = placed.support.natural
    clipped = any(node.op_type not in ("Relu", "Add") for node in placed.tail)
    if natural is None or clipped or rules.names_operator(entry, placed.node):
        return entry
    fixed: Spec = {"fixed": {"lower": natural[0], "upper": natural[1]}}
    because = f"{entry.because}; natural range of {placed.node.op_type}"
    return msgspec.structs.replace(entry, range=fixed, because=because)


def _with_exact_biases(entries: tuple[Entry, ...], layout: Layout) -> tuple[Entry, ...]:
    """The entries without the biases of layers that multiply codes of more than 8 bits.

    No integer kernel adds them, and a step that is a product of two such steps is too fine for int32.
    """
    wide = {entry.site.value for entry in entries if entry.site.role is not Role.BIAS and _is_wide(entry.grid)}
    dropped: set[tuple[str, int]] = set()
    for placed in layout.placed.values():
        if placed.bias is not None and placed.support.weight is not None:
            operands = (*placed.operands, placed.support.weight)
            read = {value.name for index in operands if (value := placed.node.inputs[index]) is not None}
            if read & wide:
                dropped.add((node_key(placed.bias[0]), placed.bias[1]))
    return tuple(
        entry
        for entry in entries
        if entry.site.role is not Role.BIAS or (entry.site.node, entry.site.operand) not in dropped
    )


def _is_wide(grid: Grid) -> bool:
    return int(create("formats", grid.format).bits(grid)) > _BYTE


_BYTE = 8


def _site(node: Node, operand: int, role: Role, op: str | None = None) -> Site:
    value = node.outputs[operand] if role is Role.OUTPUT else node.inputs[operand]
    if value is None:
        raise ValueError(f"operand {operand} of {node.name} is empty")
    array = constant_of(value)
    return Site(
        value=value.name or "",
        role=role,
        node=node_key(node),
        name=original_name(node),
        op=op or node.op_type,
        operand=operand,
        shape=array.shape if array is not None else dimensions(value),
    )


def _ties(layout: Layout) -> Iterator[Tie]:
    for placed in layout.placed.values():
        if placed.support.tied:
            names = [placed.node.inputs[index] for index in placed.operands]
            values = (
                *(value.name or "" for value in names if value is not None),
                *(value.name or "" for value in placed.results),
            )
            because = f"{placed.node.op_type} moves codes and does not rescale them"
            yield Tie(values=values, because=because, node=node_key(placed.node))
