"""Pages, read from their HTML; the runs are those of the tests of the reader."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stackwise_core.run_files.reading import read_runs
from stackwise_report.page import page
from tests.small_runs import changed, finished, run  # noqa: F401 - fixtures

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart. Whatever is opened must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self._cell).replace("\xa0", " "))
            self._cell = None

    def handle_data(self, data) -> None:
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).replace("\xa0", " ").split())

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def table(self, *headings: str) -> list[list[str]]:
        """The rows of the one table that begins with these headings."""
        (found,) = (rows for rows in self.tables if rows[0][: len(headings)] == list(headings))
        return found[1:]


@pytest.fixture(scope="session")
def page_of() -> Callable[..., Page]:
    """Make the page of some runs, and take it apart."""

    def page_of(*directories: Path, samples: dict[str, list[str]] | None = None) -> Page:
        return Page(page(read_runs(directories), samples or {}, "1.2.3"))

    return page_of
