"""The packages of this folder, installed for one test; each was written by the docs alone."""

import os
import sys
from pathlib import Path

import pytest
import tomli

HERE = Path(__file__).parent


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Make them found as pip's editable install does, in this process and in those that it starts."""
    before, folders = set(sys.modules), []
    for source in sorted(HERE.glob("stackwise-*")):
        project = tomli.loads((source / "pyproject.toml").read_text())["project"]
        name, version = project["name"], project["version"]
        info = tmp_path / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{plugin} = {module}\n" for plugin, module in project["entry-points"]["stackwise"].items()]
        (info / "entry_points.txt").write_text("[stackwise]\n" + "".join(lines))
        folders.append(source)
    for folder in (*folders, tmp_path / "site"):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [tmp_path / "site", *folders])))
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(HERE / "stackwise-")):
            del sys.modules[name]
