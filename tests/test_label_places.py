"""Labels of points: none covers another one, a point or the edge, and none is nearer to a point that is not its own."""

from hypothesis import given
from hypothesis import strategies as st

from howlow.reporting.label_places import Box, box_around, label_places

SIZE = (310.0, 170.0)
points = st.lists(st.tuples(st.floats(0, SIZE[0]), st.floats(0, SIZE[1])), min_size=1, max_size=14)


def boxes_of(places: list[tuple[float, float] | None], texts: list[str]) -> list[Box]:
    return [
        box_around(*place, 6.0 * len(text), 11.0)
        for place, text in zip(places, texts, strict=True)
        if place is not None
    ]


@given(points, st.lists(st.integers(1, 2048), min_size=14, max_size=14))
def test_nothing_is_covered(there: list[tuple[float, float]], ranks: list[int]) -> None:
    texts = [str(rank) for rank in ranks[: len(there)]]
    places = label_places(there, texts, [], SIZE)
    boxes = boxes_of(places, texts)
    for own, text, place in zip(there, texts, places, strict=True):
        if place is not None:
            label = box_around(*place, 6.6 * len(text), 12.0)
            assert all(label.away(own) <= label.away(other) + 1e-6 for other in there)
    for place, box in enumerate(boxes):
        assert not any(box.covers(other) for other in boxes[:place])
        assert not any(box.covers(box_around(*point, 7, 7)) for point in there)
        assert box.left >= 0
        assert box.top >= 0
        assert box.right <= SIZE[0]
        assert box.bottom <= SIZE[1]


def test_points_far_apart_all_have_their_labels_and_the_first_point_wins() -> None:
    far = [(40.0 + 50 * place, 85.0) for place in range(5)]
    assert None not in label_places(far, ["2048"] * 5, [], SIZE)
    crowded = [(155.0, 85.0)] * 40
    places = label_places(crowded, ["2048"] * 40, [], SIZE)
    assert places[0] is not None
    assert None in places


def test_a_bar_is_covered_only_where_nothing_else_is_free() -> None:
    bar = box_around(155, 85, 300, 2)
    (place,) = label_places([(155.0, 85.0)], ["8"], [bar], SIZE)
    assert place is not None
    assert not box_around(*place, 6, 11).covers(bar)
