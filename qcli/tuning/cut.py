"""Which of two ways each part of a network takes, so that the sum of all costs is least: a minimum cut.

    E(x) = sum_i a_i [x_i = 0] + b_i [x_i = 1] + sum_ij w_ij [x_i != x_j]        with a, b, w >= 0

Such sums have their exact minimum in polynomial time. Source: Greig, Porteous and Seheult 1989, "Exact Maximum A
Posteriori Estimation for Binary Images"; the flow is that of Dinic 1970.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

_NONE = 1e-12


def least_cost(costs: Sequence[tuple[float, float]], borders: Mapping[tuple[int, int], float]) -> tuple[bool, ...]:
    """For each part whether it takes the second way. `costs` are those of both ways, `borders` those of differing.

    Of equal minima the one with the fewest second ways. Raises ValueError for a negative border.
    """
    if any(cost < 0 for cost in borders.values()):
        raise ValueError("a border with a negative cost has no minimum cut")
    source, sink = len(costs), len(costs) + 1
    flow = _Flow(len(costs) + 2)
    for part, (first, second) in enumerate(costs):
        least = min(first, second)  # costs that both ways have in common change nothing, and may be negative
        flow.add(source, part, first - least, 0.0)
        flow.add(part, sink, second - least, 0.0)
    for (one, other), cost in borders.items():
        flow.add(one, other, cost, cost)
    flow.run(source, sink)
    return tuple(flow.reached[part] >= 0 for part in range(len(costs)))


class _Flow:
    """A network of edges with capacities; edge n and edge n ^ 1 are the two directions of one."""

    def __init__(self, nodes: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(nodes)]
        self._ends: list[int] = []
        self._left: list[float] = []
        self.reached = [-1] * nodes
        """The distance from the source after the last search, -1 behind the cut."""

    def add(self, first: int, second: int, there: float, back: float) -> None:
        for begin, end, capacity in ((first, second, there), (second, first, back)):
            self._edges[begin].append(len(self._ends))
            self._ends.append(end)
            self._left.append(capacity)

    def run(self, source: int, sink: int) -> None:
        while self._search(source) and self.reached[sink] >= 0:
            tried = [0] * len(self._edges)
            while self._push(source, sink, tried):
                pass

    def _search(self, source: int) -> bool:
        self.reached = [-1] * len(self._edges)
        self.reached[source] = 0
        waiting = deque([source])
        while waiting:
            node = waiting.popleft()
            for edge in self._edges[node]:
                end = self._ends[edge]
                if self._left[edge] > _NONE and self.reached[end] < 0:
                    self.reached[end] = self.reached[node] + 1
                    waiting.append(end)
        return True

    def _push(self, source: int, sink: int, tried: list[int]) -> bool:
        """One path of shortest length, followed without recursion, since networks are deep."""
        path: list[int] = []
        node = source
        while node != sink:
            edge = self._next(node, tried)
            if edge is not None:
                path.append(edge)
                node = self._ends[edge]
            elif not path:
                return False
            else:
                last = path.pop()
                node = self._ends[last ^ 1]
                tried[node] += 1
        amount = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= amount
            self._left[edge ^ 1] += amount
        return True

    def _next(self, node: int, tried: list[int]) -> int | None:
        edges = self._edges[node]
        while tried[node] < len(edges):
            edge = edges[tried[node]]
            if self._left[edge] > _NONE and self.reached[self._ends[edge]] == self.reached[node] + 1:
                return edge
            tried[node] += 1
        return None
