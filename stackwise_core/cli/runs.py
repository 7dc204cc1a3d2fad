"""``stackwise runs``: the runs of a directory, and how far each is; without torch."""

import time
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.output import json_option, print_json
from stackwise_core.cli.pulse import working
from stackwise_core.cli.tables import print_table

_ALL_COLUMNS = 90
"""Columns of a terminal that the whole table fits into with names of some length."""


@click.command(short_help="List runs: state, phases done, bound, size, age.")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@json_option()
def runs(directory: Path | None, as_json: bool) -> None:
    """List the runs in DIRECTORY, the last changed first. Without it: run.directory of stackwise.toml, or runs.

    \b
    running      a process works on it
    unfinished   it was stopped: "stackwise run NAME" resumes it
    damaged      files are missing or can't be read; the reason is printed below
    no run       another kind of directory
    age          since the run last wrote something

    Other commands take the names. Weights aren't compared with their checksums: "stackwise verify NAME" does that.
    """
    from stackwise_core.config.run_names import runs_directory
    from stackwise_core.errors import UsageError
    from stackwise_core.options import ByteSize
    from stackwise_core.printable import printable
    from stackwise_core.run_files.listing import list_runs

    there = runs_directory() if directory is None else directory
    if directory is not None and not directory.is_dir():
        raise UsageError(f"no such directory: {directory}")
    with working(Console(stderr=True), "looking at the runs"):
        listed = list_runs(there) if there.is_dir() else []
    if as_json:
        plain = [
            {
                "name": run.path.name,
                "path": str(run.path),
                "state": run.state,
                "phases_done": run.phases_done,
                "phases": run.phases,
                "nats_per_token": None if run.likelihood is None else run.likelihood.nats_per_token,
                "standard_error": None if run.likelihood is None else run.likelihood.standard_error,
                "bits_per_byte": None if run.likelihood is None else run.likelihood.bits_per_byte,
                "bytes": run.bytes,
                "changed": None if run.changed is None else datetime.fromtimestamp(run.changed, UTC).isoformat(),
                "problems": list(run.problems),
            }
            for run in listed
        ]
        print_json({"directory": str(there), "runs": plain})
        return
    if not listed:
        where = f"There are no runs in {there}" if there.is_dir() else f"There is no directory {there}"
        click.echo(f'{where} yet. "stackwise run" makes one.')
        return
    console, now = Console(), time.time()
    rows = [
        {
            "run": run.path.name,
            "state": run.state,
            "phases": f"{run.phases_done}/{run.phases}" if run.phases else "-",
            "nats/token": f"{run.likelihood.nats_per_token:.4f}" if run.likelihood else "-",
            "bits/byte": _number(run.likelihood.bits_per_byte if run.likelihood else None),
            "size": str(ByteSize(run.bytes)),
            "age": "-" if run.changed is None else age(now - run.changed),
        }
        for run in listed
    ]
    if console.is_terminal and console.width < _ALL_COLUMNS:
        rows = [{name: cell for name, cell in row.items() if name != "bits/byte"} for row in rows]
    print_table(console, list(rows[0]), [list(row.values()) for row in rows], left=2)
    problems = [(run.path.name, problem) for run in listed for problem in run.problems]
    if problems:
        click.echo()
    for name, problem in problems:
        click.echo(f"{printable(name)}: {problem}")


def age(seconds: float) -> str:
    """Return an age as ``45 s``, ``12 min``, ``3 h`` or ``9 days``; never rounded up."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 if unit == "days" else 1) * size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
