"""Draws docs/images/architecture.svg and fills the table of docs/architecture.md: ``python docs/make_architecture.py``.

Rooms and their order are in docs/architecture.toml, arrows are the imports of the core's modules. The drawing leaves
out arrows that follow from others (A to C, where A has one to B and B to C); the table has them all.
"""

import ast
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path

from attrs import frozen

DOCS = Path(__file__).parent
CORE = DOCS.parent / "stackwise_core"
PAGE = DOCS / "architecture.md"
DRAWING = DOCS / "images" / "architecture.svg"
MARKS = ("<!-- rooms -->\n", "<!-- /rooms -->")
WIDTH, BOX_WIDTH, BOX_HEIGHT, GAP = 1000, 310, 44, 30


@frozen
class Room:
    """A package or module of the core that others import as one."""

    name: str
    purpose: str
    layer: int
    """Its place from the bottom, 0 the lowest."""
    lines: int
    imports: frozenset[str]
    """Other rooms that its modules import from."""


def modules() -> dict[str, Path]:
    """Map each module of the core, without the package's name, to its file."""
    paths = (path for path in sorted(CORE.rglob("*.py")) if path.parent != CORE or path.stem != "__init__")
    names = {path: ".".join(path.relative_to(CORE).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return {name: path for path, name in names.items()}


def imports(path: Path) -> Iterator[str]:
    """Return the core's modules that a file imports at run time, also within functions, without the package's name."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "stackwise_core":
            module = (node.module or "").removeprefix("stackwise_core").lstrip(".")
            yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def layers() -> list[dict[str, str]]:
    """Read rooms and their purposes by layer, from the bottom up."""
    read: list[dict[str, str]] = tomllib.loads((DOCS / "architecture.toml").read_text())["layer"]
    return read


def room_of(module: str, rooms: list[str]) -> str | None:
    """Return the room that a module is or is in."""
    while module and module not in rooms:
        module = module.rpartition(".")[0]
    return module or None


def read_rooms() -> list[Room]:
    """Read the rooms with the imports between them."""
    names = [name for layer in layers() for name in layer]
    found, lines = {name: set[str]() for name in names}, dict.fromkeys(names, 0)
    for module, path in modules().items():
        room = room_of(module, names)
        if room is not None:
            lines[room] += len(path.read_text().splitlines())
            found[room] |= {other for each in imports(path) if (other := room_of(each, names)) not in (None, room)}
    return [
        Room(name, purpose, place, lines[name], frozenset(found[name]))
        for place, layer in enumerate(layers())
        for name, purpose in layer.items()
    ]


def direct(rooms: list[Room]) -> set[tuple[str, str]]:
    """Return the arrows that don't follow from others."""
    by_name = {room.name: room for room in rooms}

    def reached(name: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        for other in by_name[name].imports - seen:
            seen = reached(other, seen | {other})
        return seen

    return {
        (room.name, other)
        for room in rooms
        for other in room.imports
        if not any(other in reached(between) for between in room.imports - {other})
    }


def drawing(rooms: list[Room]) -> str:
    """Draw the rooms, the highest layer at the top, as SVG."""
    highest = max(room.layer for room in rooms)
    places: dict[str, tuple[float, float]] = {}
    for layer in range(highest + 1):
        beside = [room for room in rooms if room.layer == layer]
        for number, room in enumerate(beside):
            x = WIDTH / 2 + (number - (len(beside) - 1) / 2) * (BOX_WIDTH + 24)
            places[room.name] = (x, 20 + (highest - layer) * (BOX_HEIGHT + GAP))
    parts = [_arrow(places[above], places[below]) for above, below in sorted(direct(rooms))]
    for room in rooms:
        x, y = places[room.name]
        corner = f'x="{x - BOX_WIDTH / 2:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"'
        parts.append(f'<rect {corner} class="room"/>')
        parts.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" class="name">{escape(room.name)}</text>')
        parts.append(f'<text x="{x:.0f}" y="{y + 34:.0f}" class="purpose">{escape(room.purpose)}</text>')
    height = 20 + (highest + 1) * (BOX_HEIGHT + GAP)
    style = (
        "svg{background:#fff}.room{fill:#f3f6fa;stroke:#5b7083}.arrow{fill:none;stroke:#8aa0b4}"
        "text{text-anchor:middle;font-family:sans-serif}.name{font-size:14px;font-weight:600;fill:#1d2b36}"
        ".purpose{font-size:10.5px;fill:#44576a}"
    )
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#8aa0b4"/></marker>'
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="Rooms of the core and the imports between them">\n<style>{style}</style>\n<defs>{head}</defs>\n'
        f"{body}\n</svg>\n"
    )


def _arrow(above: tuple[float, float], below: tuple[float, float]) -> str:
    """Draw an arrow from a box down to another, round the rooms that it passes."""
    (x1, y1), (x2, y2) = above, below
    y1, y2 = y1 + BOX_HEIGHT, y2 - 4
    passed = round((y2 - y1) / (BOX_HEIGHT + GAP))
    if passed < 1:
        path = f"M{x1:.0f},{y1:.0f} L{x2:.0f},{y2:.0f}"
    else:
        side = 1 if passed % 2 else -1
        edge, out = side * (BOX_WIDTH / 2 - 20), side * (BOX_WIDTH / 2 + 14 + 14 * passed)
        curve = f"{x1 + out:.0f},{y1 + 26:.0f} {x2 + out:.0f},{y2 - 26:.0f}"
        path = f"M{x1 + edge:.0f},{y1:.0f} C{curve} {x2 + edge:.0f},{y2:.0f}"
    return f'<path d="{path}" class="arrow" marker-end="url(#head)"/>'


def table(rooms: list[Room]) -> str:
    """List the rooms, the highest first, with their purposes and all that they import."""
    rows = [
        f"| `{room.name}` | {room.purpose} | {', '.join(f'`{each}`' for each in sorted(room.imports)) or '-'} |\n"
        for room in sorted(rooms, key=lambda room: -room.layer)
    ]
    return f"| room | what is in it | imports |\n| --- | --- | --- |\n{''.join(rows)}"


def filled(page: str, rooms: list[Room]) -> str:
    """Return the page with its table as it is to be."""
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}{table(rooms)}{MARKS[1]}{after}"


if __name__ == "__main__":
    found = read_rooms()
    DRAWING.write_text(drawing(found))
    PAGE.write_text(filled(PAGE.read_text(), found))
