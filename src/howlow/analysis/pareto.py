"""Which candidates are on the Pareto front: no other one is as cheap and as good, and cheaper or better."""

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], qualities: Sequence[float], higher_is_better: bool) -> list[int]:
    """The places of the candidates on the front, the cheapest first; lower costs are better."""
    sign = -1.0 if higher_is_better else 1.0
    order = sorted(range(len(costs)), key=lambda place: (costs[place], sign * qualities[place]))
    front: list[int] = []
    for place in order:
        best = sign * qualities[front[-1]] if front else float("inf")
        is_tied = bool(front) and (costs[place], qualities[place]) == (costs[front[-1]], qualities[front[-1]])
        if sign * qualities[place] < best or is_tied:
            front.append(place)
    return front
