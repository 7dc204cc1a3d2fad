"""The example in each plugin's README is a configuration that works."""

import re
from pathlib import Path

import pytest

from stackwise_core.cli import main

READMES = sorted(Path(__file__).parents[2].glob("plugins/*/README.md"))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_example_checks(readme, tmp_path):
    """`stackwise check` has nothing to say against it, and the files that the README links to are there."""
    text = readme.read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "example.toml").write_text(example)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "example.toml")])
    assert ended.value.code in (0, None)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    missing = [link for link in links if not (readme.parent / link).exists()]
    assert missing == []
