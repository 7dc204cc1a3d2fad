"""Every kind of mistake and its whole report, as files: ``golden/NAME.toml`` and ``golden/NAME.txt``.

``STACKWISE_UPDATE_GOLDEN=1 pytest tests/config/test_errors.py`` writes the reports anew; read the difference.
Comment lines at the top of a TOML give the case its ``--set`` and its environment.
"""

import os
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from stackwise_core.config.errors import ConfigError, ConfigUnavailable, Place, Problem, ProblemsError
from stackwise_core.config.load import load
from stackwise_core.errors import UnavailableError, UsageError

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted({path.stem for path in GOLDEN.iterdir() if path.suffix in (".toml", ".txt")})
DISTRIBUTIONS = [folder.name for folder in Path(__file__).parents[2].glob("plugins/*")]
OURS = [each.name for each in entry_points(group="stackwise") if each.dist and each.dist.name in DISTRIBUTIONS]


def report(name: str) -> ProblemsError:
    """Return the report of loading a case, with our own plugins only."""
    overrides, environ = [], {"STACKWISE_PLUGIN_AUTOLOAD": "0"}
    file = Path(f"{name}.toml")
    for line in file.read_bytes().decode("utf-8", "replace").splitlines() if file.exists() else ():
        if line.startswith("# --set "):
            overrides.append(line.removeprefix("# --set "))
        elif line.startswith("# STACKWISE_"):
            variable, _, value = line.removeprefix("# ").partition("=")
            environ[variable] = value
    with pytest.raises(ProblemsError) as caught:
        load(file, overrides=overrides, environ=environ, plugins=OURS)
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_the_report_of_a_mistake(name, monkeypatch):
    """The whole report is the golden one, to the character, but for the folder that the tests lie in."""
    monkeypatch.chdir(GOLDEN)
    text = f"{report(name)}\n".replace(str(GOLDEN), "GOLDEN")
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("STACKWISE_UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_six_mistakes_at_once(monkeypatch):
    """Six mistakes give six problems in the order of the file, each with a line and a column, and exit code 2."""
    monkeypatch.chdir(GOLDEN)
    error = report("six_mistakes")
    places = [(problem.place.line, problem.place.column) for problem in error.problems]
    assert len(places) == 6
    assert places == sorted(places)
    assert isinstance(error, ConfigError)
    assert isinstance(error, UsageError)
    assert error.exit_code == 2


def test_only_unavailable(monkeypatch):
    """A right configuration whose plugin lacks a package exits with 3, and keeps the registry's error as its cause."""
    monkeypatch.chdir(GOLDEN)
    error = report("missing_package")
    assert isinstance(error, ConfigUnavailable)
    assert error.exit_code == 3
    assert isinstance(error.__cause__, UnavailableError)


def test_unavailable_beside_a_mistake(monkeypatch):
    """A mistake wins over a missing package: both are listed, and the exit code is 2."""
    monkeypatch.chdir(GOLDEN)
    error = report("missing_package_and_a_mistake")
    assert [problem.unavailable is None for problem in error.problems] == [True, False]
    assert error.exit_code == 2


def test_as_json(monkeypatch):
    """The JSON form has the same facts as the text."""
    monkeypatch.chdir(GOLDEN)
    report_ = report("unknown_key").as_json()
    assert report_["ok"] is False
    assert report_["problems"] == [
        {
            "place": "unknown_key.toml",
            "line": 2,
            "column": 1,
            "key": "training.bach_size",
            "message": "unknown key",
            "help": "did you mean batch_size?",
            "unavailable": False,
        }
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("epochs", "epochs_per_stack"),
        ("steps", "steps_per_stack"),
        ("lr", "block_lr"),
        ("learning_rate", "block_lr"),
        ("bach_size", "batch_size"),
    ],
)
def test_a_key_by_another_trainer_s_name(tmp_path, key, meant):
    """Its first word, or what others call it, is as good as a slip of the pen."""
    (tmp_path / "a.toml").write_text(f"[training]\n{key} = 3\n")
    with pytest.raises(ConfigError, match=f"did you mean {meant}\\?"):
        load(tmp_path / "a.toml", environ={})


def test_no_file_is_near_by_its_ending_alone(tmp_path, monkeypatch):
    """All TOML files end alike."""
    monkeypatch.chdir(tmp_path)
    Path("ab.toml").touch()
    with pytest.raises(ConfigError) as refused:
        load("zy.toml", environ={})
    assert "did you mean" not in str(refused.value)


def test_the_nearest_file(tmp_path, monkeypatch):
    """A missing file's message names the one in its folder that was probably meant."""
    monkeypatch.chdir(tmp_path)
    Path("stackwise.toml").touch()
    with pytest.raises(ConfigError, match=r"stakwise\.toml: no such file\n    help: did you mean stackwise\.toml\?"):
        load("stakwise.toml", environ={})


def test_a_folder_in_place_of_a_file(tmp_path):
    """A folder is refused with the reason."""
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path, environ={})


def test_carets_under_wide_characters_and_tabs():
    """Carets stand under what is meant, also after tabs and characters that are two columns wide."""
    place = Place("a.toml", 3, 5, "\t日本 = 1", 1)
    assert place.excerpt() == ["  3 | \t日本 = 1", "    | \t     ^"]


def test_a_very_long_line_is_cut():
    """Of a long line only the part around the carets is shown."""
    place = Place("a.toml", 1, 5001, "x" * 5000 + "bad" + "y" * 5000, 3)
    source, carets = place.excerpt()
    assert len(source) < 200
    assert source[carets.index("^") :].startswith("bad")


def test_control_characters_are_not_printed():
    """A terminal's escape codes and lone surrogates in a file or a variable don't reach the terminal."""
    problem = Problem("found \x1b[31m\udcff", "a", Place("x\x1b", 1, 1, "\x1b]0;title\x07", 1))
    assert "\x1b" not in str(problem)
    str(problem).encode()
