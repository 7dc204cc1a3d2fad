"""Formats and their options on the command line of ``stackwise export``."""

import json

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from tests.tiny import Ran, run_tiny

QUICK = {"training.steps_per_stack": 1, "rack.stacks": 1, "evaluation.draws": 1, "evaluation.sequences": 4}
FORMAT = """
from typing import Literal
from attrs import frozen
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.interfaces.checkpoint_format import CheckpointFormat, Written
from stackwise_core.options import at_least, option

@hookimpl
def checkpoint_format():
    return [Implementation("notes", "What it was asked for", "notes_format:Notes", "notes_format:Options")]

@frozen
class Options:
    largest_note: int = option(10, "A number.", check=at_least(1))
    style: Literal["plain", "long"] = option("plain", "A word.")
    signed: bool = option(False, "A switch.")

class Notes(CheckpointFormat):
    def recognises(self, directory):
        return (directory / "note.txt").is_file()
    def describe(self, directory):
        raise NotImplementedError
    def read(self, directory, checkpoint, name, into):
        raise NotImplementedError
    def write(self, rack, tensors, tokenizer, directory):
        (directory / "note.txt").write_text(repr(self.options))
        facts = {"note": repr(self.options)}
        return Written(title="a note", numbers="no numbers", facts=facts, notes=("Read it.",))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    return run_tiny(tmp_path_factory.mktemp("export"), QUICK)


@pytest.fixture
def export(ran, tmp_path, install):
    """Export the run into ``tmp_path / "out"`` with more words."""
    install("stackwise-notes", {"notes_format": FORMAT}, {"notes": "notes_format"})

    def export(*words: object, to: str = "notes", first: tuple[str, ...] = ()):
        command = ["export", *first, str(ran.directory), "--to", to, str(tmp_path / "out"), *map(str, words)]
        return CliRunner().invoke(main, command)

    return export


def test_options_of_the_format_are_options_of_the_command(export, tmp_path):
    """In either spelling, before and after the run; those of the command stay its own."""
    done = export("--style=long", "--signed", "true", "--json", first=("--largest-note", "3"))
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["note"] == (tmp_path / "out" / "note.txt").read_text()
    assert said["note"] == "Options(largest_note=3, style='long', signed=True)"
    assert (said["format"], said["files"], said["blocks"], said["adapters"]) == ("notes", ["note.txt"], 1, [])


def test_what_it_says_is_printed(export, tmp_path):
    """The title, the number format, and lines of the format's own."""
    lines = export().stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path}/out: a note of 1 blocks, ")
    assert "parameters in no numbers, " in lines[0]
    assert lines[-1] == "Read it."


WRONG = {
    "a value": (("--largest-note", "0"), "--largest-note 0: expected at least 1, found 0"),
    "a word": (
        ("--style", "lng"),
        '--style lng: expected "plain" or "long", found "lng"\n    help: did you mean "long"?',
    ),
    "a type": (("--largest-note", "many"), '--largest-note many: expected an integer, found the string "many"'),
    "a misspelt option": (
        ("--largest-nte", "3"),
        'no option of the command, nor of checkpoint_format "notes"\n    help: did you mean --largest-note?',
    ),
    "a misspelt option of the command": (("--dpth", "1"), "help: did you mean --depth?"),
    "another format's option": (
        ("--architecture", "llama"),
        "known here: --depth, --json, --to, --largest-note, --style",
    ),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_located(export, tmp_path, words, message):
    """As it was typed, with the nearest right thing; nothing is written."""
    done = export(*words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_at_once(export):
    """Each option by itself."""
    said = export("--largest-note", "0", "--style", "lng", "--colour", "red").stderr
    assert said.endswith("3 errors. Nothing was run.\n")


def test_an_option_without_its_value(export):
    """At the end of the line; a misspelt one names the one that was meant."""
    done = export("--jsn")
    assert done.exit_code == 2
    assert "--jsn: expected a value behind it; or did you mean --json?" in done.stderr


def test_a_format_that_nobody_has(export):
    """With those that are there; one of ours names its package where that is left out."""
    done = export(to="nots")
    assert (done.exit_code, '--to nots: unknown checkpoint_format "nots". Did you mean "notes"?' in done.stderr) == (
        2,
        True,
    )
    done = export("-p", "no:huggingface", to="hf")
    assert (done.exit_code, "blocked by -p no:huggingface" in done.stderr) == (3, True)


def test_help_says_where_options_are_listed():
    """The command's own, and the way to the format's."""
    said = CliRunner().invoke(main, ["export", "--help"]).stdout
    assert "stackwise plugins show FORMAT" in " ".join(said.split())
    assert "--depth" in said
    assert "max_shard_size" in CliRunner().invoke(main, ["plugins", "show", "hf"]).stdout
