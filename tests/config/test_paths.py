"""Paths of a run's configuration, as seen from its directory."""

import json
import os
from pathlib import Path

import pytest

from stackwise_core.config.dump import dump
from stackwise_core.config.load import load_run, structure
from stackwise_core.config.paths import is_there, with_paths_relative_to
from stackwise_core.registry import Registry


def written(run: Path, written_in: Path | None = None, **data: object) -> dict:
    """Return the texts of a run's configuration."""
    run.mkdir(parents=True, exist_ok=True)
    config = structure({"data": data}, Registry.discover())
    relative = with_paths_relative_to(config, run)
    (run / "config.toml").write_text(dump(relative))
    about = {} if written_in is None else {"written_in": str(written_in)}
    (run / "manifest.json").write_text(json.dumps({"files": {"config.toml": about}}))
    return relative.data


@pytest.mark.parametrize(
    ("path", "relative"),
    [
        ("{tmp}/project/text.txt", "../../text.txt"),
        ("{tmp}/project/text", "../../text"),
        ("{tmp}/project/../shared/*.txt", "../../../shared/*.txt"),
        ("{tmp}/project/runs/first/python-docs", "./python-docs"),
        ("/nowhere/text.txt", "/nowhere/text.txt"),
        ("python-docs", "python-docs"),
    ],
)
def test_a_path_is_named_as_seen_from_the_run(tmp_path, path, relative):
    """Where they share more than the root; names of what is no path stay."""
    data = written(tmp_path / "project/runs/first", corpus=path.format(tmp=tmp_path))
    assert data.corpus.options.path == relative


def test_links_lead_where_the_system_follows_them(tmp_path):
    """The folder of runs may be a link to another disk, from which ".." leads elsewhere."""
    (tmp_path / "scratch" / "deep" / "runs").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "text.txt").write_text("text")
    (tmp_path / "project" / "runs").symlink_to(tmp_path / "scratch" / "deep" / "runs")
    run = tmp_path / "project" / "runs" / "first"
    data = written(run, corpus=str(tmp_path / "project" / "text.txt"))
    assert (run / data.corpus.options.path).samefile(tmp_path / "project" / "text.txt")
    assert Path(load_run(run)[0].data.corpus.options.path).samefile(tmp_path / "project" / "text.txt")


@pytest.mark.parametrize(("there", "found"), [(["new"], "new"), (["old"], "old"), (["old", "new"], "new"), ([], "new")])
def test_what_moved_along_comes_before_what_stayed(tmp_path, there, found):
    """A path is looked for from where the run is, then from where it was."""
    for folder in there:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text("text")
    run = tmp_path / "new/runs/first"
    written(run, tmp_path / "old/runs/first", corpus=str(tmp_path / "new/text.txt"))
    assert load_run(run)[0].data.corpus.options.path == str(tmp_path / found / "text.txt")


@pytest.mark.parametrize(
    "manifest", ["", "[]", '{"files": 1}', '{"files": {"config.toml": {"written_in": 1}}}', "[" * 9999]
)
def test_a_manifest_that_no_run_wrote_says_nothing(tmp_path, manifest):
    """The run's directory is all that is known then."""
    run = tmp_path / "runs/first"
    written(run, corpus=str(tmp_path / "text.txt"))
    (run / "manifest.json").write_text(manifest)
    assert os.path.normpath(load_run(run)[0].data.corpus.options.path) == str(tmp_path / "text.txt")


def test_a_glob_is_there_if_its_folder_is(tmp_path):
    """What it matches is for later."""
    assert is_there(str(tmp_path / "**" / "*.txt"))
    assert not is_there(str(tmp_path / "text" / "*.txt"))
