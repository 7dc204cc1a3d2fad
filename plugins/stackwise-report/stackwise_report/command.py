"""``stackwise report``: runs as a page to look at."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.public import Run, json_option, plugin_option, print_json, refuse_other_than_run, working
from stackwise_core.interfaces.command import Command, EndedRun, NextStep

PAGE = "report.html"


class ReportCommand(Command):
    """``stackwise report RUN ...``."""

    def make(self) -> click.Command:
        """Return the command. It imports matplotlib when it runs, not before."""
        return report

    def next_step(self, run: EndedRun) -> NextStep:
        """See it on a page, whatever the run kept."""
        return NextStep("see it on a page", (run.path,))


@click.command()
@click.argument("directories", metavar="RUN [RUN ...]", nargs=-1, required=True, type=Run())
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"[default: RUN/{PAGE}; of several runs {PAGE} in this directory]",
)
@click.option(
    "--samples", metavar="N", type=click.IntRange(1), help="Let each run, which must be finished, write N texts."
)
@plugin_option
@json_option("Print the numbers as JSON, and write no page.")
def report(
    directories: tuple[Path, ...], output: Path | None, samples: int | None, plugins: Sequence[str], as_json: bool
) -> None:
    """Write one HTML page of runs, finished or not; it needs no network.

    It shows losses, likelihoods, memory, masks, the cache, speed, the configuration and the environment.
    """
    from stackwise_core.config.source_run import read_source_run
    from stackwise_core.errors import UsageError
    from stackwise_report.page import page
    from stackwise_report.samples import check_sampler

    for directory in directories:
        refuse_other_than_run(directory)
    if as_json and output is not None:
        raise UsageError("--json prints, and --output names a page to write: leave one of them out.")
    if samples is not None:
        check_sampler()
        for directory in directories:  # found before torch is loaded
            read_source_run(directory)
    target = output or (directories[0] / PAGE if len(directories) == 1 else Path(PAGE))
    if not as_json and (target.is_dir() or not target.absolute().parent.is_dir()):
        kind = "a directory" if target.is_dir() else f"in {target.parent}, which is no directory"
        raise UsageError(f"--output {target}: expected a file to write, found {kind}.")

    from stackwise_core.run_files.reading import read_runs
    from stackwise_core.system.files import publish_text
    from stackwise_report.as_json import as_plain

    with working(Console(stderr=True), "reading and drawing") as tell:
        runs = read_runs(directories)
        texts = {}
        if samples is not None:
            from stackwise_report.samples import sampled

            for run in runs:
                tell(f"{run.label} is writing texts")
                texts[run.label] = sampled(run, samples, plugins)
            tell("")
        if not as_json:
            publish_text(target, page(runs, texts, version("stackwise-report")))
    if as_json:
        plain = [{**as_plain(run), "samples": texts.get(run.label, [])} for run in runs]
        print_json({"runs": plain})
        return
    click.echo(os.fspath(target))
