"""docs/architecture.md: its drawing and its table are those of the imports."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def architecture():
    """The script that draws the page."""
    sys.path.insert(0, str(DOCS))
    try:
        import make_architecture
    finally:
        sys.path.remove(str(DOCS))
    return make_architecture


@pytest.fixture(scope="module")
def rooms(architecture):
    """The rooms of the core."""
    return architecture.read_rooms()


def test_the_drawing_is_up_to_date(architecture, rooms):
    """``make docs`` changes nothing."""
    assert architecture.DRAWING.read_text() == architecture.drawing(rooms)
    page = architecture.PAGE.read_text()
    assert page == architecture.filled(page, rooms)


def test_all_arrows_point_down(rooms):
    """Nothing imports from a layer that isn't below its own."""
    layers = {room.name: room.layer for room in rooms}
    assert [(room.name, other) for room in rooms for other in room.imports if layers[other] >= room.layer] == []


def test_an_arrow_that_follows_from_others_is_left_out(architecture):
    """A to C isn't drawn where there is A to B to C."""
    a, b, c = (
        architecture.Room(name, "", layer, 1, frozenset(others))
        for name, layer, others in [("a", 2, "bc"), ("b", 1, "c"), ("c", 0, "")]
    )
    assert architecture.direct([a, b, c]) == {("a", "b"), ("b", "c")}


def test_rooms_that_the_page_names_are_there(architecture, rooms):
    """The page sends nobody to a folder that isn't there."""
    text = architecture.PAGE.read_text()
    for room in rooms:
        if room.name.startswith("engine."):
            assert f"`{room.name.replace('.', '/')}`" in text or f"`{room.name.replace('.', '/')}/" in text, room.name
