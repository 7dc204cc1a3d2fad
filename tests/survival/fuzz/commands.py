"""Commands on a run one of whose files is hostile."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from attrs import frozen
from hypothesis import strategies as st

from stackwise_core.cli import main as command_line
from stackwise_core.run_files.names import MANIFEST
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.messages import legible, short
from tests.survival.fuzz.specimens import file_like, files_of, forge, put, specimens
from tests.survival.fuzz.watch import Broken


@frozen
class Command:
    """A command on a run one of whose files was changed."""

    words: tuple[str, ...]
    run: str
    file: str
    content: bytes
    forged: bool
    """Whether the manifest was made to fit."""


COMMANDS: Mapping[tuple[str, ...], tuple[str, str]] = {
    ("verify", "."): ("finished", ""),
    ("evaluate", ".", "--device", "cpu"): ("finished", ""),
    ("cache", "list", "."): ("finished", "c"),
    ("cache", "measure", "."): ("finished", "c"),
    ("cache", "drop", ".", "--yes"): ("finished", "c"),
    ("merge", ".", "--to", "copy"): ("finished", ""),
    ("restore", ".", "--precision", "int8", "--to", "copy"): ("finished", ""),
    ("check", "config.toml"): ("finished", "config.toml"),
    ("plan", "config.toml"): ("finished", "config.toml"),
    ("run", "."): ("broken-off", ""),
}
"""The run that each is tried on, and how the names begin of those of its files that it reads."""


@st.composite
def commands(draw: st.DrawFn, name: str) -> Command:
    """Draw commands that begin with this word."""
    words = draw(st.sampled_from([each for each in COMMANDS if each[0] == name]))
    run, prefix = COMMANDS[words]
    file = draw(st.sampled_from([each for each in files_of(run) if each.startswith(prefix)]))
    content = draw(file_like(specimens() / run / file))
    return Command(words, run, file, content, draw(st.sampled_from([True, True, False])))


def undamaged(name: str) -> Callable[[], Command]:
    """Return a maker of the same command on a run that is as it was written."""

    def command() -> Command:
        words = next(each for each in COMMANDS if each[0] == name)
        run = COMMANDS[words][0]
        return Command(words, run, "environment.json", (specimens() / run / "environment.json").read_bytes(), True)

    return command


def check_command(case: Command, inside: Path) -> bool:
    """Check that it works or says in a line or two why not: no traceback, no defect, nothing that a terminal obeys."""
    shutil.copytree(specimens() / case.run, inside, dirs_exist_ok=True)
    put(inside / case.file, case.content)
    if case.forged and case.file != MANIFEST:
        forge(inside, case.file)
    output, errors, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(inside)  # where what a run makes besides itself is put
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            code = _code_of([*case.words])
    finally:
        os.chdir(before)
    said = output.getvalue() + errors.getvalue()
    if code not in (0, 1, 2, 3) or "this is a defect" in said or "Traceback" in said or "out of memory" in said:
        raise Broken(f"exit code {code}: {said[-2000:]}")
    legible(said)
    if code:
        short(errors.getvalue() or output.getvalue())
    return not code


def _code_of(words: list[str]) -> int | str | None:
    try:
        command_line.main(words)
    except SystemExit as done:
        return done.code or 0
    return 0


TARGETS_OF_COMMANDS = [
    Target(
        f"stackwise {name}",
        lambda name=name: commands(name),
        check_command,
        share,
        undamaged(name),
        may_read_anything=lambda case: case.file == "config.toml",  # as a configuration of one's own
    )
    for name, share in (
        ("verify", 0.1),
        ("cache", 0.04),
        ("check", 0.02),
        ("plan", 0.01),
        ("evaluate", 0.02),
        ("merge", 0.01),
        ("restore", 0.01),
        ("run", 0.01),
    )
]
