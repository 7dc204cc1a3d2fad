"""Standard output in other encodings, and beside plugins that print."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.cli.output import json_option, print_json
from tests.command_line import CONFIG

STACKWISE = [sys.executable, "-m", "stackwise_core.cli"]
NAME = "naïve 日本"
SMALL = CONFIG.replace('name = "small"', f'name = "{NAME}"').replace(
    "[cache_backend]", "steps_per_stack = 2\n[evaluation]\ndraws = 1\nsequences = 4\n[cache_backend]"
)
NOISY = """
import os
print("noise of the import")
os.write(1, b"noise past Python\\n")
from stackwise_core.hookspecs import Implementation, hookimpl

@hookimpl
def mask_schedule():
    print("noise of the hook")
    return [Implementation("noisy", "Linear", "noisy_factory:Noisy", "noisy_factory:Options")]
"""
FACTORY = """
print("noise of the factory's import")
from attrs import frozen
from stackwise_core.interfaces.mask_schedule import MaskSchedule

@frozen
class Options:
    pass

class Noisy(MaskSchedule):
    def __init__(self, options):
        super().__init__(options)
        print("noise of its making")

    def fraction(self, progress):
        print("noise of its work")
        return progress
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a configuration and a finished run whose name Latin-1 can't tell."""
    folder = tmp_path_factory.mktemp("output")
    (folder / "small.toml").write_text(SMALL, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner(charset="latin-1").invoke(main, ["run", "small.toml"])
    assert done.exit_code == 0, done.output
    assert "run directory: runs/naïve ??\n" in done.stdout
    assert "±" in done.stdout
    return folder


def stackwise(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    command = [*STACKWISE, *arguments]
    return subprocess.run(command, capture_output=True, cwd=folder, env=os.environ | environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "small.toml"], "small.toml is fine"),
        (["plan", "small.toml", "--set", f"run.name={NAME}"], "rack: 2 stacks"),
        (["sample", f"runs/{NAME}", "--prompt", "In the 日本 ░", "--length", "4"], "In the ?? ?"),
        (["evaluate", f"runs/{NAME}"], "runs/naïve ?? on its validation split"),
        (["verify", f"runs/{NAME}"], "runs/naïve ??: "),
    ],
    ids=["check", "plan", "sample", "evaluate", "verify"],
)
def test_what_an_encoding_lacks_is_replaced(folder, monkeypatch, arguments, said):
    """It is no error."""
    monkeypatch.chdir(folder)
    done = CliRunner(charset="latin-1").invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert said in done.stdout
    assert "defect" not in done.output


def test_json_is_whole_in_every_encoding(folder):
    """A name is told in full, by escapes."""
    done = stackwise(folder, "verify", f"runs/{NAME}", "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["run"] == f"runs/{NAME}"
    done = stackwise(folder, "verify", f"runs/{NAME}", "--json", PYTHONIOENCODING="utf-16-le")
    assert json.loads(done.stdout.decode("utf-16-le"))["ok"] is True


def test_an_error_that_the_encoding_lacks(folder):
    """It has its exit code and its message."""
    done = stackwise(folder, "check", "日本.toml", PYTHONIOENCODING="latin-1")
    assert done.returncode == 2
    assert b"no such file" in done.stderr


@pytest.mark.slow
def test_bars_on_a_terminal_that_is_not_utf8(folder):
    """They are drawn in what it has; the run ends well."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    command = [*STACKWISE, "run", "small.toml", "--fresh"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "TERM": "xterm"}
    with subprocess.Popen(command, cwd=folder, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        seen = b""
        try:
            while block := os.read(master, 1 << 16):
                seen += block
        except OSError:  # all of it was read
            pass
        os.close(master)
    assert process.returncode == 0, seen
    assert b"defect" not in seen
    assert b"validation NELBO at" in seen


@pytest.fixture
def noisy(folder, monkeypatch) -> Path:
    (folder / "noisy_plugin.py").write_text(NOISY)
    (folder / "noisy_factory.py").write_text(FACTORY)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("arguments", "noise"),
    [
        (["check", "small.toml", "--json"], {"past Python", "of the import", "of the hook", "of the factory's import"}),
        (["plugins", "--json"], {"past Python", "of the import", "of the hook"}),
        (["plugins", "show", "noisy", "--json"], {"of the import", "of the hook", "of the factory's import"}),
    ],
    ids=["check", "plugins", "show"],
)
def test_what_a_plugin_prints_does_not_get_into_json(noisy, arguments, noise):
    """Whenever it prints, and though it writes past Python; it is on stderr instead."""
    chosen = ["--set", "mask_schedule=noisy"] if "small.toml" in arguments else []
    done = stackwise(noisy, *arguments, "-p", "noisy_plugin.py", *chosen)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert {each for each in noise if f"noise {each}\n".encode() in done.stderr} == noise


def test_what_a_plugin_prints_while_it_works(noisy, monkeypatch):
    """Not when it is imported alone. Without --json a text, such as a sample in a file, has nothing of its import."""
    monkeypatch.chdir(noisy)
    monkeypatch.syspath_prepend(noisy)
    arguments = ["plan", "small.toml", "-p", "noisy_plugin.py", "--set", "mask_schedule=noisy"]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert json.loads(done.stdout)["phases"]
    assert "noise of its making\n" in done.stderr
    assert "noise of its work\n" in done.stderr
    sys.modules.pop("noisy_plugin")
    done = CliRunner().invoke(main, arguments)
    assert "noise of the import\n" in done.stderr
    assert "noise of the import\n" not in done.stdout
    sys.modules.pop("noisy_plugin")


def test_json_within_a_process_keeps_its_standard_output():
    """What is redirected is put back, also where a command of a group asks once more."""

    @click.group(invoke_without_command=True)
    @json_option()
    def outer(as_json: bool) -> None:
        print("noise")

    @outer.command()
    @json_option("Once more.")
    def inner(as_json: bool) -> None:
        print("more noise")
        print_json({"a": 1}, indent=None)

    result = CliRunner().invoke(outer, ["--json", "inner", "--json"])
    assert result.stdout == '{"a": 1}\n'
    assert result.stderr == "noise\nmore noise\n"


@pytest.mark.parametrize("arguments", [["check", "a\udcff.toml"], ["run", "x.toml", "--set", "run.name=\udcff"]])
def test_an_argument_that_is_not_utf8_is_refused(arguments):
    """Names are kept in UTF-8; the option that it stands behind is named."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert re.search(r"(--set: )?expected UTF-8, found '.*\\udcff", result.stderr)
    assert ("--set: " in result.stderr) == ("--set" in arguments)
