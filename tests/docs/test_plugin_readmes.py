"""The example in each plugin's README works: a configuration, or command lines."""

import re
from pathlib import Path

import click
import pytest

from stackwise_core.cli import main
from stackwise_core.config.load import load

READMES = sorted(Path(__file__).parents[2].glob("plugins/*/README.md"))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_example_checks(readme, tmp_path):
    """`stackwise check` has nothing to say against it, and the files that the README links to are there.

    One that has no configuration shows commands, which are there.
    """
    text = readme.read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    commands = re.findall(r"^stackwise (\w+)", text, re.MULTILINE)
    assert len(examples) == 1 or (examples == [] and commands)
    for example in examples:
        (tmp_path / "example.toml").write_text(example)
        if "init_from" in example:  # the reader has what it names
            load(tmp_path / "example.toml", environ={}, check_source=False)
            continue
        with pytest.raises(SystemExit) as ended:
            main(["check", str(tmp_path / "example.toml")])
        assert ended.value.code in (0, None)
    for command in commands:
        assert main.resolve_command(click.Context(main), [command])[1]
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    missing = [link for link in links if not (readme.parent / link.partition("#")[0]).exists()]
    assert missing == []
