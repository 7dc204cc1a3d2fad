"""Imports point one way, and what the command line lists imports nothing heavy."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = tuple(tuple(layer) for layer in tomllib.loads((ROOT / "docs" / "architecture.toml").read_text())["layer"])
"""From the bottom up, below ``stackwise_core``: a module imports from its own room and from layers before it."""
WITH_TORCH = ("engine", "testing")
"""Packages that import torch; ``interfaces`` and ``system`` do within functions that engine and plugins call."""


def imports(path: Path) -> Iterator[str]:
    """Return a file's imports at run time, also in functions: modules, and names as ``module.name``."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


CORE = {module_name(path): path for path in sorted((ROOT / "stackwise_core").rglob("*.py"))}
MODULES = [module for module in CORE if module not in ("stackwise_core", "stackwise_core.engine")]
"""Those of rooms: a package that holds rooms is empty."""
PLUGIN_FILES = sorted((ROOT / "plugins").glob("*/stackwise_*/**/*.py"))
HOOK_FILES = [path for path in PLUGIN_FILES if path.name == "hooks.py"]
OPTIONS_FILES = [path for path in PLUGIN_FILES if path.name == "options.py"]


def core_imports(path: Path) -> set[str]:
    """The core's modules that a file imports; ``from package import name`` counts as the module that it names."""
    found = set()
    for name in imports(path):
        while name and name not in CORE:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", "stackwise_core"}


def room(module: str) -> str:
    """The longest entry of LAYERS that the module is or is in."""
    inside = module.removeprefix("stackwise_core.")
    rooms = {room for layer in LAYERS for room in layer}
    while inside not in rooms:
        assert "." in inside, f"{module} has no place in docs/architecture.toml"
        inside = inside.rpartition(".")[0]
    return inside


def layer(module: str) -> int:
    """The place of the module's layer from the bottom."""
    return next(place for place, layer in enumerate(LAYERS) if room(module) in layer)


@pytest.mark.parametrize("module", MODULES)
def test_the_core_imports_downwards(module):
    """A module imports from its own room and from lower layers; rooms side by side don't know each other."""
    others = [other for other in core_imports(CORE[module]) if room(other) != room(module)]
    assert [other for other in others if layer(other) >= layer(module)] == []


def test_every_room_has_modules():
    """The list of layers names nothing that isn't there."""
    assert {room(module) for module in MODULES} == {room for layer in LAYERS for room in layer}


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[1] not in WITH_TORCH])
def test_torch_is_the_engine_s(module):
    """Outside engine and kit nothing imports torch when it is imported."""
    body = ast.parse(CORE[module].read_text()).body
    at_once = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_once if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in at_once if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.partition(".")[0] in ("torch", "safetensors")]


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[1] not in WITH_TORCH])
def test_nothing_outside_the_engine_imports_torch_at_all(module):
    """Not in a function either, but for interfaces' defaults and the state of the process, which are the engine's."""
    if room(module) not in ("interfaces", "system"):
        assert not [name for name in imports(CORE[module]) if name.partition(".")[0] == "torch"]


def test_the_core_has_no_circles():
    """No module imports itself through others."""
    graph = {module: core_imports(path) - {module} for module, path in CORE.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_core_imports_no_plugin():
    """Every ``stackwise_...`` that the core imports is the core."""
    packages = {name.partition(".")[0] for path in CORE.values() for name in imports(path)}
    assert {package for package in packages if package.startswith("stackwise")} == {"stackwise_core"}


@pytest.mark.parametrize("path", HOOK_FILES, ids=module_name)
def test_a_hook_module_imports_only_the_hook_specs(path):
    """Listing plugins costs nothing."""
    assert {name.rpartition(".")[0] for name in imports(path)} == {"stackwise_core.hookspecs"}


def test_every_plugin_has_hooks_and_options():
    """The tests of these files look at all of them; a command alone has no options, and ``stackwise`` no package."""

    def distributions(files: list[Path]) -> set[str]:
        return {path.relative_to(ROOT / "plugins").parts[0] for path in files}

    every = {path.name for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").exists()}
    assert distributions(HOOK_FILES) == every - {"stackwise"}
    with_options = [path for path in HOOK_FILES if "options" in path.read_text()]
    assert distributions(OPTIONS_FILES) == distributions(with_options)


def test_options_import_nothing_heavy():
    """A configuration is checked without torch."""
    modules = [".".join(path.relative_to(ROOT / "plugins").with_suffix("").parts[1:]) for path in OPTIONS_FILES]
    code = (
        f"import importlib, sys; [importlib.import_module(module) for module in {modules!r}]; "
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
