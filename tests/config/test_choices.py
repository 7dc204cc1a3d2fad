"""Keys that choose, and what a text alone is short for."""

import sys

import pytest
from attrs import evolve

from stackwise_core.config.changes import changes, is_text
from stackwise_core.config.choices import chosen, lengthen
from stackwise_core.config.dump import dump, plain
from stackwise_core.config.errors import ConfigUnavailable
from stackwise_core.config.load import load, structure
from stackwise_core.config.model import Choice
from stackwise_core.engine.text.sources import find_sources
from stackwise_core.errors import UnavailableError
from stackwise_core.registry import Registry
from stackwise_text.options import FilesOptions

ROWS = """
from attrs import frozen
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.options import option

@hookimpl
def corpus():
    return [Implementation("rows", "Of a database", "choices_rows:Rows", "choices_rows:Options")]

@frozen
class Options:
    path: str = option("texts.db", path=())
    query: str = option("SELECT 1")
"""
TEXTS = """
[data]
validation = { use = "files", path = "held.txt" }
[data.sources.plain]
corpus = "books/*.txt"
[data.sources."the second"]
corpus = { use = "rows", path = "texts.db" }
"""


@pytest.fixture(autouse=True)
def forget_the_plugin():
    """A plugin file becomes a module; each test has its own."""
    yield
    sys.modules.pop("choices_rows", None)


def loaded(folder, text):
    (folder / "choices_rows.py").write_text(ROWS)
    (folder / "small.toml").write_text(f'run.plugins = ["choices_rows.py"]\n{text}')
    return load(folder / "small.toml", environ={})[0]


def test_a_text_alone_is_short_for_files():
    """A path, wherever a text is named; a name stays a name."""
    data = {"data": {"corpus": "a", "sources": {"x": {"corpus": "b"}, "y": {"corpus": {"use": "rows"}}}}}
    data["precision"] = {"active": "bf16"}
    lengthen(data)
    assert data == {
        "data": {
            "corpus": {"use": "files", "path": "a"},
            "sources": {"x": {"corpus": {"use": "files", "path": "b"}}, "y": {"corpus": {"use": "rows"}}},
        },
        "precision": {"active": {"use": "bf16"}},
    }


def test_texts_are_choices(tmp_path):
    """Of several sources each may have a plugin of its own; their paths are those of the TOML's folder."""
    config = loaded(tmp_path, TEXTS)
    texts = [(key, choice.use, choice.options.path) for key, hook, choice in chosen(config) if hook == "corpus"]
    assert texts == [
        ("data.sources.plain.corpus", "files", str(tmp_path / "books/*.txt")),
        ('data.sources."the second".corpus', "rows", str(tmp_path / "texts.db")),
        ("data.validation", "files", str(tmp_path / "held.txt")),
    ]


def test_the_short_way_and_the_long_one_are_the_same(registry, tmp_path):
    """Written out it is the short one, whichever the TOML has, and comes back."""
    short, long = (structure({"data": {"corpus": text}}, registry) for text in ("/a", {"use": "files", "path": "/a"}))
    assert short == long
    assert short.data.corpus == Choice("files", FilesOptions("/a"))
    assert plain(short)["data"]["corpus"] == "/a"
    config = loaded(tmp_path, TEXTS)
    assert plain(config)["data"]["sources"]["plain"] == {"corpus": str(tmp_path / "books/*.txt"), "weight": 1.0}
    (tmp_path / "again.toml").write_text(dump(config))
    assert load(tmp_path / "again.toml", environ={})[0] == config


def test_layers_change_a_text_in_either_way(tmp_path):
    """A path over another plugin and its options, and an option of the plugin over its own."""
    (tmp_path / "choices_rows.py").write_text(ROWS)
    (tmp_path / "small.toml").write_text('[data]\ncorpus = { use = "rows", query = "SELECT 2" }')

    def changed(*overrides):
        plugins = [str(tmp_path / "choices_rows.py")]
        return load(tmp_path / "small.toml", environ={}, overrides=overrides, plugins=plugins)[0].data.corpus

    assert changed("data.corpus=python-docs") == Choice("files", FilesOptions())
    assert changed("data.corpus.query=SELECT 3").options.query == "SELECT 3"


def test_where_a_text_is_does_not_count(registry):
    """For a run that goes on; what else is asked of its plugin does, until its fingerprint says otherwise."""
    keys = ("data.corpus", "data.validation.path", "data.sources.x.corpus", 'data.sources."a.b".corpus.path')
    assert all(map(is_text, keys))
    assert not any(map(is_text, ("data.tokenizer", "data.sources.x.weight", "data.corpora", "rack.init_from")))
    before = structure({"data": {"corpus": "/a"}}, registry)
    moved = structure({"data": {"corpus": "/b"}}, registry)
    assert changes(before, moved, registry) == []
    other = evolve(before, data=evolve(before.data, corpus=Choice("rows", {"path": "/a", "query": "SELECT 1"})))
    assert [change.key for change in changes(before, other, registry)] == [
        "data.corpus",
        "data.corpus.path",
        "data.corpus.query",
        "data.corpus.use",
    ]


def test_a_path_without_the_plugin_names_the_package(registry):
    """At the key that names the text; and where the built-in text is meant without a word."""
    without = Registry([plugin for plugin in registry.plugins if plugin.distribution != "stackwise-text"])
    with pytest.raises(ConfigUnavailable, match=r'^data\.corpus: .*corpus "files".* pip install stackwise-text'):
        structure({"data": {"corpus": "/a"}}, without)
    with pytest.raises(UnavailableError, match="pip install stackwise-text"):
        find_sources(structure({}, without).data, without)
