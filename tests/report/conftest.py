"""Small runs of each kind, and what a page says, read from its HTML."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stackwise_core.report.page import page
from stackwise_core.report.reading import read_runs
from stackwise_core.runs.manifest import Manifest
from tests.tiny import run_tiny

VOID = {"meta", "link", "br", "img", "input", "hr"}
SHORT = {"training.steps_per_stack": 6, "evaluation": {"every": 3, "sequences": 4, "draws": 1}}


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


def page_of(*directories: Path, samples: dict[str, list[str]] | None = None) -> Page:
    return Page(page(read_runs(directories), samples or {}, "1.2.3"))


def lines(directory: Path, kind: str) -> list[dict]:
    every = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


def seal(directory: Path, name: str) -> None:
    """Have the manifest agree with what was done to a file."""
    from hashlib import sha256

    manifest, content = json.loads((directory / "manifest.json").read_text()), (directory / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert not Manifest(directory).problem(name)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A block-wise run of three stacks, with boundaries on the disk and validations."""
    return run_tiny(tmp_path_factory.mktemp("finished"), SHORT | {"cache_backend": {"use": "disk"}}).directory


@pytest.fixture
def run(tmp_path, finished) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))


@pytest.fixture
def changed(run) -> Callable[[str, Callable], Path]:
    """Change a JSON file of the copy, with or without its checksum."""

    def change(name: str, how: Callable[[dict], None], sealed: bool = True) -> Path:
        value = json.loads((run / name).read_text())
        how(value)
        (run / name).write_text(json.dumps(value))
        if sealed:
            seal(run, name)
        return run

    return change
