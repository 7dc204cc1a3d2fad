"""Runs whose text comes from a plugin file, from the configuration to the end and after it."""

import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from tests.tiny import TEXT

pytestmark = pytest.mark.slow

ROWS = """
import sqlite3
from contextlib import closing
from pathlib import Path
from attrs import frozen
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.interfaces.corpus import Corpus, Document
from stackwise_core.options import option

@hookimpl
def corpus():
    return [Implementation("sqlite", "Rows", "corpora_rows:Rows", "corpora_rows:Options")]

@frozen
class Options:
    path: str = option("texts.db", path=())
    query: str = option("SELECT body FROM pages ORDER BY number")

class Rows(Corpus):
    @property
    def name(self):
        return self.options.path

    def files(self, split):
        return [Path(self.name)]

    def fingerprint(self, split, hashes):
        return [("sqlite", self.options.query, *hashes.values())]

    def documents(self, split, consumed):
        with closing(sqlite3.connect(self.name)) as database:
            for number, (text,) in enumerate(database.execute(self.options.query), start=1):
                consumed(len(text))
                yield Document(f"{self.name}:{number}", (text,))
"""
CONFIG = """
[run]
name = "small"
plugins = ["corpora_rows.py"]
[data]
validation = "held.txt"
seq_len = 32
tokens_directory = "tokens"
[data.sources.rows]
corpus = { use = "sqlite", path = "texts.db" }
[data.sources.file]
corpus = "genesis.txt"
weight = 2
[rack]
stacks = 1
blocks_per_stack = 1
d_model = 32
n_heads = 2
[training]
steps_per_stack = 3
batch_size = 4
[evaluation]
draws = 1
sequences = 4
"""


def write_rows(path: Path, texts: list[str]) -> None:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE pages (number INTEGER PRIMARY KEY, body TEXT)")
        database.executemany("INSERT INTO pages VALUES (?, ?)", enumerate(texts))


def stackwise(*arguments):
    sys.modules.pop("corpora_rows", None)  # as another process
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    text = TEXT.read_text()
    (folder / "corpora_rows.py").write_text(ROWS)
    (folder / "genesis.txt").write_text(text[:1500])
    (folder / "held.txt").write_text(text[-700:])
    (folder / "small.toml").write_text(CONFIG)
    write_rows(folder / "texts.db", text[1500:3000].splitlines())
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("corpora_rows", None)


def measured(*arguments):
    result = stackwise("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    return said["likelihoods"][-1]["nats_per_token"], said["notes"]


def test_a_run_on_rows_and_a_file(project):
    """It trains on both; evaluate measures on its text, or on the tokens that were made of it before that changed."""
    assert stackwise("check", "small.toml").exit_code == 0
    done = stackwise("run", "small.toml")
    assert done.exit_code == 0, done.output
    first, notes = measured("runs/small")
    assert notes == []
    write_rows(project / "texts.db", ["Other rows than before."] * 30)
    again, (changed,) = measured("runs/small")
    assert again == first
    assert "the text of" in changed
    assert "has changed since the run" in changed
    (project / "corpora_rows.py").unlink()
    again, (gone,) = measured("runs/small")
    assert again == first
    assert f"no such file: {project}/corpora_rows.py" in gone
    shutil.rmtree(project / "tokens")
    lost = stackwise("evaluate", "runs/small")
    assert (lost.exit_code, "corpora_rows.py" in lost.output) == (3, True)
    assert measured("runs/small", "--corpus", "held.txt")[0] == first


def test_rows_are_the_same_elsewhere(project):
    """Where a database is doesn't count, and its content does; another query is another text."""
    (project / "moved").mkdir()
    shutil.copy(project / "texts.db", project / "moved")
    moved = ["--set", "data.sources.rows.corpus.path=moved/texts.db"]
    plan = stackwise("plan", "small.toml", "--json")
    there = stackwise("plan", "small.toml", *moved, "--json")
    assert json.loads(plan.stdout)["corpus"] == json.loads(there.stdout)["corpus"]
    query = ["--set", "data.sources.rows.corpus.query=SELECT body FROM pages ORDER BY number DESC"]
    other = stackwise("plan", "small.toml", *query, "--json")
    assert json.loads(plan.stdout)["corpus"] != json.loads(other.stdout)["corpus"]


def test_faults_of_a_database_are_found_by_check(project):
    """The database's own exception, at the key that names it, with the text and the plugin."""
    result = stackwise("check", "small.toml", "--set", "data.sources.rows.corpus.query=SELECT body FROM pagse")
    assert result.exit_code == 2
    assert (
        f'data.sources.rows.corpus: {project}/texts.db: OperationalError: no such table: pagse (corpus "sqlite" of '
        "corpora_rows.py)"
    ) in result.output.replace("\n", "")


def test_a_copy_elsewhere_has_its_texts(project, tmp_path):
    """A copy that restore makes names the texts as seen from its own directory, those of plugins that are there."""
    assert stackwise("run", "small.toml").exit_code == 0
    restored = stackwise("restore", "runs/small", "--precision", "fp32", "--to", tmp_path / "deep" / "down" / "copy")
    assert restored.exit_code == 0, restored.output
    value, notes = measured(tmp_path / "deep" / "down" / "copy")
    assert (value, notes) == measured("runs/small")
    (project / "corpora_rows.py").unlink()  # the rack doesn't need it
    restored = stackwise("restore", "runs/small", "--precision", "fp32", "--to", tmp_path / "without")
    assert restored.exit_code == 0, restored.output
    assert measured(tmp_path / "without")[0] == value
