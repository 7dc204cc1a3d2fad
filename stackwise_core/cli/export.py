"""``stackwise export``: a finished run as a model that transformers loads."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from stackwise_core.cli.arguments import plugin_option, run_argument
from stackwise_core.cli.output import json_option, print_json

if TYPE_CHECKING:
    from stackwise_core.rack.pretrained_config import Architecture, Number


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    from stackwise_core.options import ByteSize

    try:
        size = ByteSize.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if size < 1:
        raise click.BadParameter("expected more than 0 bytes")
    return size


@click.command(short_help="Write a run's rack for another library.")
@run_argument
@click.option(
    "--to",
    "to",
    required=True,
    nargs=2,
    metavar="hf DIR",
    type=(click.Choice(["hf"]), click.Path(path_type=Path)),
    help="For Hugging Face's transformers, into DIR.",
)
@click.option(
    "--architecture",
    type=click.Choice(["eurobert", "llama"]),
    help="The model of transformers that it becomes. [default: eurobert, or llama for a causal rack]",
)
@click.option("--depth", type=click.IntRange(min=1), help="Only so many stacks. [default: all]")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option(
    "--max-shard-size",
    default="5 GB",
    show_default=True,
    metavar="SIZE",
    callback=_size,
    help="Most bytes of a file with weights.",
)
@plugin_option
@json_option()
def export(
    directory: Path,
    to: tuple[str, Path],
    architecture: "Architecture | None",
    depth: int | None,
    dtype: "Number",
    max_shard_size: int,
    plugins: Sequence[str],
    as_json: bool,
) -> None:
    """Write the full-precision weights, the tokenizer and the adapters of the finished run RUN into DIR, as a model
    that transformers loads without code from elsewhere.
    """
    from stackwise_core.config.load import load_run
    from stackwise_core.config.source_run import finished_run

    source = finished_run(directory)
    config, registry = load_run(directory, plugins=plugins, hooks=("adapter",) if source.has_adapters else ())

    from stackwise_core.cli.pulse import working
    from stackwise_core.data.tokenizer import load_tokenizer
    from stackwise_core.options import ByteSize
    from stackwise_core.runs.export import Export, refuse_full
    from stackwise_core.training.setup import build_adapters

    _, target = to
    refuse_full(target)
    adapters = build_adapters(config, registry, None) if source.has_adapters else {}
    data = config.data
    tokenizer = load_tokenizer(data.tokenizer, mask_token=data.mask_token, special_ids=data.special_ids)
    with working(Console(stderr=True), "exporting"):
        exported = Export.of(
            source,
            tokenizer,
            config.data.tokenizer,
            adapters,
            architecture=architecture,
            depth=depth,
            number=dtype,
            largest=max_shard_size,
        ).write(target)
    of = exported.target
    if as_json:
        said = {
            "directory": str(target),
            "architecture": of.model_class,
            "transformers": of.needs,
            "dtype": exported.number,
            "stacks": exported.stacks,
            "blocks": exported.blocks,
            "parameters": exported.parameters,
            "files": list(exported.files),
            "adapters": [f"adapters/{name}" for name in exported.adapters],
        }
        print_json(said)
        return
    size = ByteSize(sum(file.stat().st_size for file in target.rglob("*") if file.is_file()))
    click.echo(
        f"{target}: {of.model_class} of {exported.blocks} blocks, {exported.parameters:,} parameters in "
        f"{exported.number}, {size}."
    )
    for name in exported.adapters:
        click.echo(f"{target}/adapters/{name}: an adapter over these weights.")
    trunk = config.precision.trunk
    if trunk is not None and trunk != config.precision.active:
        click.echo(
            f"The run's frozen stacks were at {trunk.use}; these are the full-precision weights that they were made of."
        )
    click.echo(f"It needs transformers {of.needs} or newer.")
    if of.model_type == "llama" and of.needs.startswith("5"):
        click.echo("Older versions load it without an error, and run it causally: its numbers are then wrong.")
