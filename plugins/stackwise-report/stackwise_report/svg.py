"""A matplotlib figure as inline SVG: in the colours and the type of the page around it, in light and dark mode."""

from __future__ import annotations

import logging
import re
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

COLOURS = {"ink": "#000001", "muted": "#000002", "line": "#000003", "card": "#000004", "warn": "#000005"}
"""Placeholder colours for matplotlib; each is replaced by a property of the page's style sheet."""
MOST_COLOURS = 8


def series(place: int) -> str:
    """Return the colour of the n-th run, or the n-th part of something, from 0."""
    return f"#0000{0x10 + place % MOST_COLOURS:02x}"


_PROPERTIES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
_PROPERTIES |= {series(place): f"var(--s{place})" for place in range(MOST_COLOURS)}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "stackwise",  # the same page twice is the same, byte for byte
    "text.parse_math": False,  # a phase may have a dollar in its name
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_joinstyle": "round",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Draw a figure.

    Args:
        name: goes before every id in it, so that several fit into one page.
        label: the text for readers who can't see it.
    """
    buffer = BytesIO()
    with warnings.catch_warnings():  # a font that lacks a glyph is only used to measure
        warnings.simplefilter("ignore")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(element)
    links = set(re.findall(r"#([\w-]+)", " ".join(value for each in root.iter() for value in each.attrib.values())))
    for element in root.iter():
        _adapt(element, name, links)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str, links: set[str]) -> None:
    attributes = element.attrib
    if "id" in attributes:
        if attributes["id"] in links:
            attributes["id"] = f"{name}-{attributes['id']}"
        else:
            del attributes["id"]
    for key, value in list(attributes.items()):
        if key == "style":
            value = re.sub(r"#[0-9a-f]{6}", lambda match: _PROPERTIES.get(match[0], match[0]), value)
            value = re.sub(r"font: (?:[\w ]* )?([\d.]+)px [^;]*", r"font-size: \1px", value)
            value = re.sub(r"url\(#([\w-]+)\)", rf"url(#{name}-\1)", value)
        elif key == "clip-path":
            value = re.sub(r"#([\w-]+)", rf"#{name}-\1", value)
        elif key == f"{{{LINK}}}href":
            value = f"#{name}-{value.removeprefix('#')}"
        elif key in ("d", "x", "y", "transform"):
            value = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
        attributes[key] = value


def quietly() -> None:
    """Have matplotlib say nothing of its font cache, which is nobody's business."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
