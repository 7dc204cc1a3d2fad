"""``stackwise verify``: a check that a run's files are as they were written."""

from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.arguments import refuse_other_than_run, run_argument
from stackwise_core.cli.output import json_option, print_json
from stackwise_core.cli.tables import print_table


@click.command(short_help="Compare every file of a run with its checksum.")
@run_argument
@json_option()
def verify(directory: Path, as_json: bool) -> None:
    """Compare every file of the run RUN, finished or not, with its checksum."""
    from stackwise_core.cli.pulse import working
    from stackwise_core.options import ByteSize
    from stackwise_core.run_files.manifest import Manifest
    from stackwise_core.run_files.names import MANIFEST

    refuse_other_than_run(directory)
    with working(Console(stderr=True), "verifying") as tell:
        while True:
            said = (directory / MANIFEST).read_bytes()
            manifest = Manifest(directory)
            size = sum(manifest.about(name)["bytes"] for name in manifest)
            problems, read = {}, 0
            for name in manifest:
                tell(f"{ByteSize(read)} of {ByteSize(size)}, {name}")
                if problem := manifest.problem(name):
                    problems[name] = problem
                read += manifest.about(name)["bytes"]
            # A run in progress may have replaced what it was just compared with.
            if not problems or (directory / MANIFEST).read_bytes() == said:
                break
    files = len(list(manifest))
    if as_json:
        result = {"run": str(directory), "ok": not problems, "files": files, "bytes": size, "problems": problems}
        print_json(result)
    elif problems:
        print_table(Console(), ("file", "problem"), list(problems.items()), left=2)
        are = "is" if len(problems) == 1 else "are"
        click.echo(f"\n{directory}: {len(problems)} of {files} files {are} damaged or missing.")
    else:
        click.echo(f"{directory}: {files} files, {ByteSize(size)}, all as they were written.")
    if problems:
        raise SystemExit(1)
