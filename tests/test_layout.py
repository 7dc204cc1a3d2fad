"""Tests are found where a reader looks for them: a module's beside its name, a theme's in a short list."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIRRORED = ("cli", "config", "engine", "interfaces", "registry", "run_files", "system", "testing")
"""Folders of ``tests`` in which ``test_X.py`` tests ``stackwise_core``'s ``X.py`` at the same place."""
THEMES = {
    "cli/test_corpora.py": "commands on a run whose text comes from a plugin file",
    "cli/test_endings.py": "commands that somebody or the system ends, at any moment",
    "cli/test_main.py": "the frame of the command line, which is in the package itself",
    "cli/test_resume.py": "`stackwise run` on an interrupted run",
    "config/test_fuzz.py": "odd input to all of the configuration",
    "engine/rack/test_streamed_stacks.py": "stacks in memory only while a window of batches passes them",
    "engine/test_adapters.py": "whole runs with adapters and quantised trunks",
    "engine/test_bad_numbers.py": "losses and gradients that aren't finite, from the rack to the metrics",
    "engine/test_compiled_runs.py": "whole runs whose blocks are compiled",
    "engine/test_no_waiting.py": "what makes the host wait in a training step, counted operator by operator",
    "engine/test_resume.py": "interrupted runs end with the bits of undisturbed ones",
    "engine/test_selective_updates.py": "a phase changes the tensors that its plan names, and no others",
    "engine/test_streaming.py": "whole runs whose trunk is streamed, with their plans",
    "run_files/test_schemas.py": "the JSON files of a real run, against their records",
}
"""Tests of no single module: what each is about."""


def imported_modules(path: Path) -> list[str]:
    """Return the names that a file imports: ``import a.b``, and ``from a import b`` as ``a.b``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def is_test_module(name: str) -> bool:
    """Whether an imported name is of a test module or of a conftest."""
    module = ROOT.joinpath(*name.split("."))
    files = [each.with_suffix(".py") for each in (module, module.parent)]
    return any(file.is_file() and (file.name.startswith("test_") or file.stem == "conftest") for file in files)


@pytest.mark.parametrize("folder", ["tests", "plugins"])
def test_nothing_is_imported_from_a_test_module(folder):
    """What tests share is in a module of its own, named for what it is; a change of a test breaks no other."""
    files = {path: imported_modules(path) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert any("tests.tiny.run_tiny" in names for names in files.values())
    assert not [
        f"{path.relative_to(ROOT)} imports {name}" for path in files for name in files[path] if is_test_module(name)
    ]


def test_a_test_module_is_recognised():
    """By either way of importing from it."""
    assert is_test_module("tests.test_layout")
    assert is_test_module("tests.test_layout.THEMES")
    assert is_test_module("tests.run_files.conftest.finished")
    assert not is_test_module("tests.tiny.run_tiny")


def test_each_test_file_mirrors_a_module_or_is_a_theme():
    """A theme in the list has its file, and no module of its name beside it."""
    lone = set()
    for folder in MIRRORED:
        for path in sorted((ROOT / "tests" / folder).rglob("test_*.py")):
            place = path.relative_to(ROOT / "tests")
            if not (ROOT / "stackwise_core" / place.parent / place.name.removeprefix("test_")).is_file():
                lone.add(str(place))
    assert lone == set(THEMES)


SLOW = "pytest.mark.slow"


def quick_tests(path: Path) -> list[str]:
    """Return the test functions of a file, and its classes of tests, that ``make check`` runs."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if any(ast.unparse(node) == f"pytestmark = {SLOW}" for node in body):
        return []
    return [
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.name.lower().startswith("test")
        and SLOW not in map(ast.unparse, node.decorator_list)
    ]


ROOMS = sorted({path.parent for path in (ROOT / "tests" / "engine").rglob("test_*.py")})
ROOMS += [ROOT / "tests" / folder for folder in MIRRORED if folder != "engine"]
ROOMS += [path for path in sorted((ROOT / "plugins").glob("*/tests")) if list(path.glob("test_*.py"))]


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_check_has_tests_of_every_room(room):
    """Three at least, so that a mistake there is seen within a minute."""
    quick = [name for path in sorted(room.glob("test_*.py")) for name in quick_tests(path)]
    assert len(quick) >= 3
