"""Imports point one way, and what the command line lists imports nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    (
        "control_groups",
        "errors",
        "files",
        "hookspecs",
        "lacking_calls",
        "machine",
        "number_range",
        "openmp",
        "options",
        "process_state",
        "quiet_imports",
        "tensor_file",
        "writable",
    ),
    ("interfaces",),
    ("registry",),
    ("config",),
    ("builtin",),
    ("data", "inference", "rack", "report", "runs", "training"),
    ("training.engine",),
    ("api",),
    ("cli", "testing"),
    ("__main__",),
)
"""From the bottom up, below ``stackwise_core``: a module imports from its own layer and from those before it."""


def imports(path: Path) -> Iterator[str]:
    """What a file imports at run time, in functions too: modules, and names in modules as ``module.name``."""
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


def layer(module: str) -> int:
    """The place in LAYERS of the longest entry that the module is or is in."""
    inside = module.removeprefix("stackwise_core.")
    entries = {entry: place for place, layer in enumerate(LAYERS) for entry in layer}
    while inside not in entries:
        assert "." in inside, f"{module} has no place in LAYERS"
        inside = inside.rpartition(".")[0]
    return entries[inside]


@pytest.mark.parametrize("module", [module for module in CORE if module != "stackwise_core"])
def test_the_core_imports_downwards(module):
    """No module imports one of a layer above its own."""
    upwards = [other for other in core_imports(CORE[module]) if layer(other) > layer(module)]
    assert upwards == []


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
    """The tests of these files look at all of them; a command alone has no options."""

    def distributions(files: list[Path]) -> set[str]:
        return {path.relative_to(ROOT / "plugins").parts[0] for path in files}

    every = {path.name for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").exists()}
    assert distributions(HOOK_FILES) == every
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
