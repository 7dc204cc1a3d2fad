"""docs/python.md is a notebook: its blocks run in order, and print what stands below them."""

import io
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CELL = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\n+^```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"-?\d+\.\d+")
"""Numbers that a processor may round in its own way."""


@pytest.mark.slow
def test_every_cell_prints_what_is_shown(tmp_path, monkeypatch):
    """Typed in the folder of stackwise.toml, the page is true but for the last digits of what was measured."""
    shutil.copy(ROOT / "stackwise.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    page = (ROOT / "docs" / "python.md").read_text()
    cells = [*CELL.finditer(page)]
    assert (len(cells), len([cell for cell in cells if cell["output"]])) == (page.count("```python"),) * 2
    for cell in cells:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(cell["code"], "docs/python.md", "exec"), names)
        shown, found = cell["output"] or "", printed.getvalue()
        assert MEASURED.sub("#", found) == MEASURED.sub("#", shown)
        for expected, value in zip(MEASURED.findall(shown), MEASURED.findall(found), strict=True):
            assert abs(float(value) - float(expected)) < 0.1
