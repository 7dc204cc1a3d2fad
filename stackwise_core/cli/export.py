"""``stackwise export``: a finished run as a model of another program."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from stackwise_core.cli.arguments import plugin_option, run_argument
from stackwise_core.cli.output import json_option, print_json
from stackwise_core.registry.nearest import nearest

_OPTIONS = f"{__name__}.options"


class WithFormatOptions(click.Command):
    """A command that leaves options which it doesn't have to a format: ``--KEY VALUE`` or ``--KEY=VALUE``."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Take the format's options out, and parse the others."""
        known = {name for each in self.get_params(context) for name in each.opts}
        own: list[str] = []
        taken: dict[str, str] = {}
        words = iter(args)
        for word in words:
            name, equals, value = word.partition("=")
            if not name.startswith("--") or name in known:
                own.append(word)
            elif word == "--":
                own += [word, *words]
            elif equals:
                taken[name] = value
            else:
                following = next(words, None)
                if following is None:
                    close = nearest(name, known)
                    guess = f"; or did you mean {close}?" if close else ""
                    raise click.UsageError(f"{name}: expected a value behind it{guess}", context)
                taken[name] = following
        context.meta[_OPTIONS] = taken
        return super().parse_args(context, own)


@click.command(cls=WithFormatOptions, short_help="Write a run's rack for another program.")
@run_argument
@click.option(
    "--to",
    "to",
    required=True,
    nargs=2,
    metavar="FORMAT DIR",
    type=(str, click.Path(path_type=Path)),
    help="In which format, such as hf for Hugging Face's transformers, and into which directory.",
)
@click.option("--depth", type=click.IntRange(min=1), help="Only so many stacks. [default: all]")
@plugin_option
@json_option()
@click.pass_context
def export(
    context: click.Context,
    directory: Path,
    to: tuple[str, Path],
    depth: int | None,
    plugins: Sequence[str],
    as_json: bool,
) -> None:
    """Write the full-precision weights, the tokenizer and the adapters of the finished run RUN into DIR, as a model of
    another program.

    Options of the format are given as --KEY VALUE; "stackwise plugins show FORMAT" lists them.
    """
    from stackwise_core.config.load import load_run
    from stackwise_core.config.option_words import chosen_by_words
    from stackwise_core.config.source_formats import HOOK
    from stackwise_core.config.source_run import finished_run

    source = finished_run(directory)
    config, registry = load_run(directory, plugins=plugins, hooks=(HOOK, "adapter") if source.has_adapters else (HOOK,))
    use, target = to
    others = [name for each in context.command.params for name in each.opts if name.startswith("--")]
    words = context.meta[_OPTIONS]
    declared, options = chosen_by_words(registry, HOOK, use, words, asked_by="--to", others=others)

    from stackwise_core.cli.pulse import working
    from stackwise_core.engine.phases.setup import build_adapters
    from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
    from stackwise_core.engine.weights.export import Export, refuse_full
    from stackwise_core.options import ByteSize

    refuse_full(target)
    adapters = build_adapters(config, registry, None) if source.has_adapters else {}
    data = config.data
    tokenizer = load_tokenizer(data.tokenizer, mask_token=data.mask_token, special_ids=data.special_ids)
    with working(Console(stderr=True), "exporting"):
        export = Export.of(source, tokenizer, data.tokenizer, adapters, depth=depth)
        exported = export.write(registry.build(declared, options), target)
    written = exported.written
    if as_json:
        said = {
            "directory": str(target),
            "format": declared.name,
            **written.facts,
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
        f"{target}: {written.title} of {exported.blocks} blocks, {exported.parameters:,} parameters in "
        f"{written.numbers}, {size}."
    )
    for name in exported.adapters:
        click.echo(f"{target}/adapters/{name}: an adapter over these weights.")
    trunk = config.precision.trunk
    if trunk is not None and trunk != config.precision.active:
        click.echo(
            f"The run's frozen stacks were at {trunk.use}; these are the full-precision weights that they were made of."
        )
    for note in written.notes:
        click.echo(note)
