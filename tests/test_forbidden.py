"""Code that the product must not contain: anything that runs the data that it reads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([*(ROOT / "stackwise_core").rglob("*.py"), *(ROOT / "plugins").glob("*/stackwise_*/**/*.py")])
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "dbm", "code"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "numpy.fromfile",
}
ARGUMENTS = {"trust_remote_code", "allow_pickle", "shell"}
"""Which may only be false."""


def forbidden(source: str) -> Iterator[str]:
    """List a file's forbidden names with their lines; names are followed to their imports."""
    tree, names = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0]: _bound(alias) for alias in node.names}
            yield from (f"{node.lineno}: {each.name}" for each in node.names if each.name.partition(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            if node.module.partition(".")[0] in MODULES:
                yield f"{node.lineno}: {node.module}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        first, dot, rest = called.partition(".")
        full = names.get(first, first) + dot + rest
        if full in CALLS or (called in BUILT_IN and called not in names):
            yield f"{node.lineno}: {full}"
        for argument in node.keywords:
            safe = isinstance(argument.value, ast.Constant) and not argument.value.value
            if argument.arg in ARGUMENTS and not safe:
                yield f"{node.lineno}: {argument.arg}={ast.unparse(argument.value)}"
            if argument.arg == "weights_only":  # it belongs to torch.load, by whatever name that was called
                yield f"{node.lineno}: weights_only"
        if full in ("numpy.load", "np.load") and not any(each.arg == "allow_pickle" for each in node.keywords):
            yield f"{node.lineno}: numpy.load without allow_pickle=False"


def _bound(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.partition(".")[0]


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path):
    """No pickle in any of its forms, no eval, no shell, no code from a hub."""
    assert list(forbidden(path.read_text(encoding="utf-8"))) == []


def test_all_of_the_product_is_looked_at():
    """The core, its command line, and every plugin; ``stackwise`` has no code."""
    looked_at = {path.relative_to(ROOT).parts[:2] for path in PRODUCT}
    assert ("stackwise_core", "cli") in looked_at
    plugins = {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")} - {"stackwise"}
    assert {second for first, second in looked_at if first == "plugins"} == plugins


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import marshal",
        "eval('1')",
        "exec(text)",
        "import torch\ntorch.load(path)",
        "from torch import load\nload(path)",
        "from torch import load as read\nread(path)",
        "import torch.jit\ntorch.jit.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=choice)",
        "import numpy as np\nnp.load(path)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import os\nos.system('true')",
        "from os import system\nsystem('true')",
        "import subprocess\nsubprocess.run('true', shell=True)",
        "model(trust_remote_code=True)",
        "import shelve",
    ],
)
def test_each_of_them_is_found(line):
    """However it is spelt."""
    assert list(forbidden(line))


@pytest.mark.parametrize(
    "line",
    [
        "import json\njson.loads(text)",
        "module.eval()",
        "re.compile('a')",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import subprocess\nsubprocess.run(['true'], shell=False)",
        "spec.loader.exec_module(module)",
    ],
)
def test_what_only_looks_like_it_is_not(line):
    """A module's evaluation mode, regular expressions, and the safe forms."""
    assert list(forbidden(line)) == []
