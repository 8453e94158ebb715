"""Finding the rule that decides a site: the last one that matches and says something counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from itertools import accumulate

import msgspec

from qcli.errors import UsageError, did_you_mean
from qcli.granularity import is_unscaled, no_blocks
from qcli.graph import Model, Node, Value, constant_of, dimensions, is_constant, node_key, original_name
from qcli.levels import is_uniform, native_of
from qcli.plugins import choice_of, create
from qcli.recipe import Recipe, SourcedRule
from qcli.types import Entry, Grid, Match, Role, Site

_SITE_ROLES = (Role.INPUT, Role.WEIGHT, Role.BIAS, Role.OUTPUT)


class RuleBook:
    """The rules of a recipe over one model."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self._rules = recipe.rules
        self._model = model
        self._by_output = {node_key(node): node for node in model.nodes()}
        self._paths = dict(model.paths())
        self._regions = {id(sourced): _region(model, sourced) for sourced in recipe.rules}
        self._refuse_idle_rules()

    def refusal(self, node: Node) -> str | None:
        """Why the recipe keeps a node float, or None."""
        for role in self._roles(node):
            decided = self._last(node, role, lambda rule: rule.rule.grid is not None or rule.rule.keep is not None)
            if decided is None:
                return f"no rule gives its {role.value} a grid"
            if decided.rule.keep is not None:
                return f"{decided.origin} keeps it float"

        return self._kept_by_result(node) or self._encoded_otherwise(node) or self._beyond_kernels(node)

    def in_floats(self, node: Node) -> bool:
        """True if the rules make floats of eight bits of what a node reads."""
        decided = self._last(node, Role.INPUT, lambda rule: rule.rule.grid is not None)
        grid = decided.rule.grid if decided is not None else None
        return grid is not None and native_of(grid) is not None

    def kept(self, node: Node) -> str | None:
        """The rule that keeps a node float in so many words, or None."""
        decided = self._last(node, Role.INPUT, lambda rule: rule.rule.grid is not None or rule.rule.keep is not None)
        said = decided is not None and decided.rule.keep is not None
        return f"{decided.origin} keeps it float" if decided is not None and said else None

    def weight_refusal(self, node: Node) -> str | None:
        """Why the recipe keeps a node's weights as they are, or None."""
        decided = self._last(node, Role.WEIGHT, lambda rule: rule.rule.grid is not None or rule.rule.keep is not None)
        if decided is None:
            return "no rule gives its weight a grid"
        return f"{decided.origin} keeps it float" if decided.rule.keep is not None else None

    def entry(self, site: Site, layer: Node | None = None) -> Entry:
        """The decision about a site. `layer` is the node whose result it is, where a Relu or the like comes between."""
        nodes = (self._node_of(site), *([layer] if layer is not None else []))
        grid = self._last_of(nodes, site, lambda rule: rule.rule.grid is not None)
        span = self._last_of(nodes, site, lambda rule: rule.rule.range is not None)
        rounding = self._last_of(nodes, site, lambda rule: rule.rule.rounding is not None)
        encoding = self._last_of(nodes, site, lambda rule: rule.rule.encoding is not None)
        return Entry(
            site=self.placed(site),
            grid=(grid.rule.grid if grid else None) or Grid(),
            range=(span.rule.range if span else None) or "minmax",
            rounding=(rounding.rule.rounding if rounding else None) or "nearest",
            encoding=(encoding.rule.encoding if encoding else None) or "qdq",
            because=_because(grid, span),
        )

    def placed(self, site: Site) -> Site:
        """The site with the path of the body that it lies in."""
        graph = self._node_of(site).graph
        path = self._paths.get(graph, "") if graph is not None else ""
        return msgspec.structs.replace(site, graph=path) if path else site

    def names_operator(self, entry: Entry, layer: Node) -> bool:
        """True if the rule that gives the range is about this operator in particular, not about a role."""
        nodes = (self._node_of(entry.site), layer)
        span = self._last_of(nodes, entry.site, lambda rule: rule.rule.range is not None)
        match = span.rule.match if span else Match()
        return any(item is not None for item in (match.op, match.name, match.value, match.from_, match.to))

    def _kept_by_result(self, node: Node) -> str | None:
        """A rule that keeps a result or a bias float keeps the node float: its kernel gives and takes integers."""
        result = self._last(node, Role.OUTPUT, lambda rule: rule.rule.grid is not None or rule.rule.keep is not None)
        bias = self._last(node, Role.BIAS, lambda rule: rule.rule.match.role is not None)
        for role, decided in ((Role.OUTPUT, result), (Role.BIAS, bias)):
            if decided is not None and decided.rule.keep is not None:
                return f"{decided.origin} keeps its {role.value} float"
        return None

    def _encoded_otherwise(self, node: Node) -> str | None:
        """A rule that gives the weight, or what the node reads or writes, an encoding without calibration.

        It takes the node out of static quantization, whose activations have ranges from samples.
        """
        for role in (*self._roles(node), Role.OUTPUT):
            decided = self._last(node, role, lambda rule: rule.rule.encoding is not None)
            encoding = decided.rule.encoding if decided is not None else None
            if decided is not None and encoding is not None and not create("encodings", encoding).calibrated:
                return f"{decided.origin} wants it {choice_of(encoding).name}"
        return None

    def _beyond_kernels(self, node: Node) -> str | None:
        """A rule that gives the weight uneven levels, floats of 16 bits, or blocks where they fit."""
        array = constant_of(node.inputs[1]) if Role.WEIGHT in self._roles(node) else None
        decided = self._last(node, Role.WEIGHT, lambda rule: rule.rule.grid is not None)
        grid = decided.rule.grid if decided is not None else None
        if array is None or decided is None or grid is None:
            return None
        named, floats = choice_of(grid.format).name, self.in_floats(node)
        if floats and native_of(grid) is None:
            return f"{decided.origin} makes its weight {named}, which nothing multiplies by floats of 8 bits"
        if not floats and (is_unscaled(grid.format) or not is_uniform(grid)):
            return f"{decided.origin} makes its weight {named}, which no integer kernel multiplies"
        if grid.granularity != "block" or no_blocks(node, 1, array.shape, grid.block) is not None:
            return None
        return f"{decided.origin} gives its weight blocks, which no static kernel multiplies"

    def _last_of(self, nodes: tuple[Node, ...], site: Site, says: Callable[[SourcedRule], bool]) -> SourcedRule | None:
        for sourced in reversed(self._rules):
            if says(sourced) and any(self._matches(sourced, node, site.role, site.value) for node in nodes):
                return sourced
        return None

    def _roles(self, node: Node) -> tuple[Role, ...]:
        weighted = any(value is not None and is_constant(value) for value in node.inputs[1:2])
        return (Role.INPUT, Role.WEIGHT) if weighted and node.op_type in _WITH_WEIGHT else (Role.INPUT,)

    def _node_of(self, site: Site) -> Node:
        return self._by_output[site.node]

    def _last(
        self, node: Node, role: Role, says: Callable[[SourcedRule], bool], value: str | None = None
    ) -> SourcedRule | None:
        for sourced in reversed(self._rules):
            if says(sourced) and self._matches(sourced, node, role, value):
                return sourced
        return None

    def _matches(self, sourced: SourcedRule, node: Node, role: Role, value: str | None) -> bool:
        match = sourced.rule.match
        region = self._regions[id(sourced)]
        return (
            _any_equal(match.op, node.op_type)
            and _any_glob(match.name, (original_name(node), node_key(node)))
            and _role_matches(match.role, role)
            and (match.value is None or _any_glob(match.value, (value,) if value else _value_names(node)))
            and (region is None or node in region)
        )

    def _refuse_idle_rules(self) -> None:
        """A rule that the user wrote and that matches nothing is a mistake; one of a preset is not."""
        nodes = tuple(self._model.nodes())
        for sourced in self._rules:
            sites = ((node, role) for node in nodes for role in _SITE_ROLES)
            if sourced.own and not any(self._matches(sourced, node, role, None) for node, role in sites):
                raise UsageError(f"{sourced.origin} matches nothing in this model", _suggest(sourced.rule.match, nodes))


_WITH_WEIGHT = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _because(grid: SourcedRule | None, span: SourcedRule | None) -> str:
    origins = dict.fromkeys(item.origin for item in (grid, span) if item is not None)
    return ", ".join(origins) or "default"


def _listed(pattern: object) -> tuple[object, ...]:
    return pattern if isinstance(pattern, tuple) else (pattern,)


def _any_equal(pattern: str | tuple[str, ...] | None, text: str) -> bool:
    return pattern is None or text in _listed(pattern)


def _any_glob(pattern: str | tuple[str, ...] | None, texts: Iterable[str]) -> bool:
    return pattern is None or any(fnmatchcase(text, str(glob)) for text in texts for glob in _listed(pattern))


def _role_matches(pattern: Role | tuple[Role, ...] | None, role: Role) -> bool:
    """`input` covers results too, since one node's result is the next one's input."""
    if pattern is None:
        return True
    wanted = _listed(pattern)
    return role in wanted or (role is Role.OUTPUT and Role.INPUT in wanted)


def _value_names(node: Node) -> tuple[str, ...]:
    return tuple(value.name or "" for value in (*node.inputs, *node.outputs) if value is not None)


def _suggest(match: Match, nodes: tuple[Node, ...]) -> str:
    known = {original_name(node) for node in nodes} if match.name is not None else {node.op_type for node in nodes}
    word = match.name if match.name is not None else match.op
    hint = did_you_mean(str(_listed(word)[0]), known) if word is not None else ""
    return hint if len(hint) < 200 else "'qcli inspect' lists the nodes of the model"


def _region(model: Model, sourced: SourcedRule) -> frozenset[Node] | None:
    """The nodes on a path from the node `from` to the node `to`, both included; one end may be left open.

    Of these, with `smallest`, those whose weights are the smallest of the model.
    """
    match = sourced.rule.match
    if match.from_ is None and match.to is None and match.smallest is None:
        return None
    region = frozenset(model.nodes())
    if match.smallest is not None:
        region &= _smallest(model, match.smallest)
    if match.from_ is not None:
        region &= _closure(_named(model, match.from_, sourced.origin), lambda node: node.successors())
    if match.to is not None:
        region &= _closure(_named(model, match.to, sourced.origin), lambda node: node.predecessors())
    return region


def _smallest(model: Model, share: float) -> frozenset[Node]:
    """The nodes with the smallest weights; of equal ones those that come first.

    Nodes that share a weight go together.
    """
    readers: dict[Value, list[Node]] = {}
    for node in model.nodes():
        weight = node.inputs[1] if node.op_type in _WITH_WEIGHT and len(node.inputs) > 1 else None
        if weight is not None and is_constant(weight):
            readers.setdefault(weight, []).append(node)
    weights = sorted(readers, key=_elements)
    held = accumulate(_elements(weight) for weight in weights)
    most = share * sum(_elements(weight) for weight in weights)
    return frozenset(
        node for weight, sum_ in zip(weights, held, strict=True) if sum_ <= most for node in readers[weight]
    )


def _elements(weight: Value) -> int:
    return math.prod(size or 0 for size in dimensions(weight) or ())


def _named(model: Model, name: str, origin: str) -> Node:
    nodes = tuple(model.nodes())
    for node in nodes:
        if name in (original_name(node), node_key(node)):
            return node
    known = {original_name(node) for node in nodes}
    raise UsageError(f"{origin}: no node is called '{name}'", did_you_mean(name, known))


def _closure(start: Node, step: Callable[[Node], Iterable[Node]]) -> frozenset[Node]:
    seen = {start}
    stack = [start]
    while stack:
        for node in step(stack.pop()):
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return frozenset(seen)
