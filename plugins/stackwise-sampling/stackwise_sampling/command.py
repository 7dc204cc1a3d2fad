"""``stackwise sample``: texts from a finished run."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from stackwise_core.cli.public import json_option, plugin_option, print_json, run_argument, working
from stackwise_core.interfaces.command import Command, EndedRun, NextStep


class SampleCommand(Command):
    """``stackwise sample RUN``."""

    def make(self) -> click.Command:
        """Return the command. It imports torch when it runs, not before."""
        return sample

    def next_step(self, run: EndedRun) -> NextStep | None:
        """Write text, with a prompt where the rack needs one."""
        if not run.keeps_weights:
            return None
        return NextStep("write text", (run.path, *(("--prompt", "The ") if run.causal else ())))


ORDERS = ["random", "confidence", "margin", "entropy"]


@click.command()
@run_argument
@click.option("--prompt", metavar="TEXT", help="Beginning of the text. [default: nothing]")
@click.option(
    "--length",
    metavar="N",
    type=click.IntRange(1),
    help="Tokens to write. [default: what the prompt leaves of data.seq_len, at least half of that]",
)
@click.option("--infill", metavar="TEXT", help='A text with gaps: "The [MASK:20] sat on the mat"; [MASK] is one token.')
@click.option(
    "--infill-file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="A file with gaps; - is standard input.",
)
@click.option("--steps", metavar="N", type=click.IntRange(1), help="Steps in all. [default: one for each token]")
@click.option("--order", type=click.Choice(ORDERS), help="Order in which masked tokens are filled. [default: random]")
@click.option(
    "--temperature", type=click.FloatRange(0), default=1.0, show_default=True, help="0 takes the likeliest token."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens that have this probability together.",
)
@click.option(
    "--block",
    metavar="N",
    type=click.IntRange(1),
    help="Fill N tokens before the next ones. [default: all, if they fit into data.seq_len]",
)
@click.option("--num", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Number of texts.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="[default: the run's]")
@click.option("--depth", metavar="N", type=click.IntRange(1), help="Use only the first N stacks. [default: all]")
@click.option(
    "--precision", metavar="NAME", help="Hold all stacks at this precision, such as nf4. [default: the run's]"
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute. [default: the run's]")
@plugin_option
@json_option()
def sample(
    directory: Path,
    prompt: str | None,
    length: int | None,
    infill: str | None,
    infill_file: str | None,
    steps: int | None,
    order: Literal["random", "confidence", "margin", "entropy"] | None,
    temperature: float,
    top_p: float,
    block: int | None,
    num: int,
    seed: int | None,
    depth: int | None,
    precision: str | None,
    device: Literal["auto", "cpu", "cuda"] | None,
    plugins: Sequence[str],
    as_json: bool,
) -> None:
    """Write text with the rack of the finished run RUN.

    Masked tokens are filled in steps, which a terminal shows. The same seed gives the same text.
    """
    from stackwise_core.config.source_run import finished_run

    finished_run(directory)
    template = _template(prompt, length, infill, infill_file)

    from stackwise_core import load_rack
    from stackwise_sampling import sampling as sampler
    from stackwise_sampling.gapped_text import GappedText
    from stackwise_sampling.texts import unmask
    from stackwise_sampling.unmasking_view import piped, print_texts, watching

    console, aside = Console(), Console(stderr=True, highlight=False)
    with working(aside, "loading the rack"):
        rack = load_rack(directory, device=device, precision=precision, plugins=plugins)
    seed = rack.seed if seed is None else seed
    settings = sampler.Sampling(order, steps, temperature, top_p, block, num, seed)
    if template is None:
        text = GappedText.after(prompt or "", length, rack.tokenizer, rack.seq_len)
    else:
        text = GappedText.of(template, rack.tokenizer)
    steps_to_do = unmask(rack, text, settings, depth)
    for note in rack.run.notes:
        aside.print(f"note: {note}", soft_wrap=not aside.is_terminal)
    if len(text.ids) > rack.seq_len:
        how = "each token from those before it"
        if not rack.causal:
            blocks = sampler.blocks_of(text.missing, rack.seq_len, settings)
            longest = max(each.stop - each.start for each in blocks)
            how = f"filled from left to right in {len(blocks)} blocks of up to {longest}"
            if len(blocks) == 1:
                how = f"the gap of {longest} is filled in view of what is nearest"
        aside.print(
            f"note: {len(text.ids)} tokens, of which the rack sees {rack.seq_len} at a time: {how}",
            soft_wrap=not aside.is_terminal,
        )
    began = time.perf_counter()
    with watching(console, text, shown=not as_json, aside=aside) as show, rack.computing():
        for step in steps_to_do:
            show(step)
    seconds = time.perf_counter() - began
    rows = step.ids.numpy()
    if as_json:
        result = {
            "run": str(directory),
            "order": None if rack.causal else order or "random",
            "steps": step.steps,
            "temperature": temperature,
            "top_p": top_p,
            "block": block,
            "seed": seed,
            "depth": rack.at_depth(depth).depth,
            "precision": precision,
            "forward_passes": step.passes,
            "seconds": round(seconds, 3),
            "filled": text.missing.nonzero()[0].tolist(),
            "samples": [{"text": text.text(ids), "ids": ids.tolist()} for ids in rows],
        }
        print_json(result, indent=None)
    elif console.is_terminal:
        print_texts(console, text, rows)
        aside.print(f"{step.steps} steps, {step.passes} forward passes, {seconds:.1f} s", style="dim")
    else:
        for number, ids in enumerate(rows, start=1):
            if num > 1:
                click.echo(f"--- {number} of {num} ---")
            click.echo(piped(text, ids), nl=False, color=True)  # else it would take escapes out of what was given


def _template(
    prompt: str | None, length: int | None, infill: str | None, infill_file: str | None
) -> tuple[str | int, ...] | None:
    """Return the parts of a text with gaps; None if the user gave a prompt instead.

    Raises:
        UsageError: it has no gaps, or options were given that exclude each other.
    """
    from stackwise_core.errors import UsageError
    from stackwise_sampling.templates import parts_of

    options = {"--infill": infill, "--infill-file": infill_file, "--prompt": prompt, "--length": length}
    given = [option for option, value in options.items() if value is not None]
    if given[:1] in (["--infill"], ["--infill-file"]) and len(given) > 1:
        raise UsageError(f"{' with '.join(given)}: expected one text, whose gaps say how much there is to write.")
    if infill_file is None:
        return None if infill is None else parts_of(infill)
    with click.open_file(infill_file, "rb") as stream:
        content = stream.read()
    try:
        return parts_of(content.decode("utf-8"), infill_file)
    except UnicodeDecodeError as error:
        raise UsageError(f"{infill_file}: expected UTF-8, found another byte at {error.start}.") from None
