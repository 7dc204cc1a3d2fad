"""``stackwise evaluate``: the likelihood bound of a finished run, by depth and by band."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from stackwise_core.cli.arguments import plugin_option, run_argument
from stackwise_core.cli.output import json_option, print_json


@click.command(short_help="Measure a finished run by depth and by band.")
@run_argument
@click.option(
    "--corpus",
    metavar="TEXT",
    help="Measure on this file, directory, split (DIRECTORY#SPLIT) or glob instead of the validation split.",
)
@click.option("--text-field", metavar="NAME", help="Field of a .jsonl, or column, of that text. [default: the run's]")
@click.option("--draws", type=click.IntRange(1), help="Masks a sequence. [default: the run's evaluation.draws]")
@click.option(
    "--sequences", type=click.IntRange(2), help="Sequences to use, evenly spaced. [default: the run's, or all]"
)
@click.option("--bands", type=click.IntRange(1), help="Intervals of the mask fraction. [default: the run's]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the masks. [default: the run's]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute. [default: the run's]")
@plugin_option
@json_option()
def evaluate(
    directory: Path,
    corpus: str | None,
    text_field: str | None,
    draws: int | None,
    sequences: int | None,
    bands: int | None,
    seed: int | None,
    device: Literal["auto", "cpu", "cuda"] | None,
    plugins: Sequence[str],
    as_json: bool,
) -> None:
    """Measure the rack of the finished run RUN on text that it wasn't trained on.

    The figure is an upper bound on the negative log-likelihood (NELBO), over all mask fractions, from masks of fixed
    counts. The same seed gives the same masks.
    """
    from stackwise_core.config.source_run import finished_run

    finished_run(directory)

    from cattrs import unstructure

    from stackwise_core.cli.bars import counting
    from stackwise_core.cli.likelihood_tables import print_likelihoods
    from stackwise_core.cli.pulse import working
    from stackwise_core.cli.run_display import tokenising
    from stackwise_core.engine.evaluation.finished import FinishedRun
    from stackwise_core.engine.evaluation.loaded_rack import LoadedRack
    from stackwise_core.engine.plan.notes import of_the_coverage, unseen

    aside = Console(stderr=True)
    with working(aside, "loading the rack"):
        run = FinishedRun.open(directory, device=device, plugins=plugins)
        rack = LoadedRack(run, stream=run.streams)
    with tokenising(aside, "reading the text") as tokenised:
        evaluation = rack.evaluation(
            corpus,
            text_field=text_field,
            draws=draws,
            sequences=sequences,
            bands=bands,
            seed=seed,
            tokenised=tokenised,
        )
    with counting(aside, "measuring", "sequences") as advance:
        likelihoods = rack.evaluate(evaluation, progress=advance)
    if as_json:
        result = {
            "run": str(directory),
            "corpus": corpus,
            "sequences": len(evaluation.samples),
            "draws": evaluation.draws,
            "seed": evaluation.seed,
            "notes": list(evaluation.notes),
            "likelihoods": [
                {
                    **unstructure(likelihood),
                    "perplexity": likelihood.perplexity if isfinite(likelihood.perplexity) else None,
                }
                for likelihood in likelihoods
            ],
        }
        print_json(result)
        return
    console = Console()
    text = "its validation split" if corpus is None else corpus
    console.print(
        f"{directory} on {text}: {len(evaluation.samples)} sequences, {likelihoods[-1].tokens} tokens, "
        + (f"{evaluation.draws} masks each" if not evaluation.causal else "each token from those before it"),
        highlight=False,
        soft_wrap=not console.is_terminal,
    )
    console.print()
    print_likelihoods(console, likelihoods, rack.routes, "validation" if corpus is None else "text")
    never_seen = [] if evaluation.causal else unseen(run.trained_bands)
    for note in (*evaluation.notes, *never_seen, *of_the_coverage(evaluation.split.coverage)):
        console.print(f"note: {note}", highlight=False, soft_wrap=not console.is_terminal)
