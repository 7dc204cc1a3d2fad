"""The distribution ``stackwise`` is a list of the others: the default set, and extras."""

import re
from pathlib import Path

import pytest
import tomli

from stackwise_core import __version__
from stackwise_core.config.choices import chosen
from stackwise_core.config.load import load
from stackwise_core.registry.blocking import CORE
from stackwise_core.registry.official import OFFICIAL

ROOT = Path(__file__).parents[1]
PROJECTS = {
    path.parent.name: tomli.loads(path.read_text())["project"] for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))
}
META = PROJECTS.pop("stackwise")
EXTRAS = META["optional-dependencies"]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.toml"))


def distribution(requirement: str) -> str:
    """The name in a requirement."""
    (name,) = re.findall(r"^[a-z-]+", requirement)
    return str(name)


DEFAULT = {distribution(requirement) for requirement in META["dependencies"]}
IN_EXTRAS = {distribution(requirement) for extra in EXTRAS.values() for requirement in extra}


def test_it_has_every_distribution_of_ours():
    """Each is in the default set or comes with an extra of its name, and nothing else is in either."""
    assert {CORE, *PROJECTS} == DEFAULT | IN_EXTRAS
    for name in {CORE, *PROJECTS} - DEFAULT:
        assert [distribution(each) for each in EXTRAS[name.removeprefix("stackwise-")]] == [name]


def test_the_default_set_is_that_of_a_clone():
    """``pip install stackwise`` brings what ``make run`` installs."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert DEFAULT - {CORE} == {line.removeprefix("-e plugins/") for line in lines if line.startswith("-e plugins/")}


def used(file: Path) -> set[str]:
    """Distributions whose implementations a configuration chooses."""
    config, registry = load(file, environ={}, check_source=False)
    return {registry.resolve(hook, choice.use).distribution for _, hook, choice in chosen(config)}


def test_the_default_run_needs_no_extra():
    """Neither does what it names when it ends."""
    assert used(ROOT / "stackwise.toml") <= DEFAULT
    assert {*OFFICIAL["command"].values(), *OFFICIAL["checkpoint_format"].values()} <= DEFAULT


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_need_no_more_than_the_extras(file):
    """With them every example of the docs runs."""
    assert used(file) <= DEFAULT | IN_EXTRAS


def test_versions_agree():
    """All of ours have one version, and the list asks for it or a later one."""
    assert {name: project["version"] for name, project in PROJECTS.items()} == dict.fromkeys(PROJECTS, META["version"])
    assert __version__ == META["version"]
    for requirement in (*META["dependencies"], *(each for extra in EXTRAS.values() for each in extra)):
        assert requirement.endswith(f">={META['version'].removesuffix('.0')}"), requirement


def test_extras_of_others_are_there():
    """An extra that is handed on exists where it leads."""
    handed_on = re.findall(r"'(stackwise-[a-z]+)\[(\w+)\]", str(EXTRAS))
    assert handed_on
    for name, extra in handed_on:
        assert extra in PROJECTS[name]["optional-dependencies"]


def test_it_has_no_package():
    """Two files are all of it, and its wheel is told to be empty."""
    folder = ROOT / "plugins" / "stackwise"
    assert {path.name for path in folder.iterdir()} == {"pyproject.toml", "README.md"}
    wheel = tomli.loads((folder / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"bypass-selection": True}


def test_its_page_lists_what_it_brings():
    """Each distribution stands in the README's tables, and each extra."""
    page = (ROOT / "plugins" / "stackwise" / "README.md").read_text()
    rows = set(re.findall(r"^\| \[?`([a-z-]+)`", page, re.MULTILINE))
    assert rows == DEFAULT | set(EXTRAS)
