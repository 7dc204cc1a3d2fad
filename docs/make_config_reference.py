"""Writes docs/config.md from the help texts of the options themselves: ``python docs/make_config_reference.py``."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

from stackwise_core.config.choices import hook_fields
from stackwise_core.config.model import Config
from stackwise_core.config.reference import OptionRow, describe
from stackwise_core.registry import Declared, Registry

TARGET = Path(__file__).with_name("config.md")
# Those of this repository: whoever makes the page may have others installed.
OURS = (
    "stackwise-core",
    "stackwise-masking",
    "stackwise-precision",
    "stackwise-bitsandbytes",
    "stackwise-peft",
    "stackwise-cache",
    "stackwise-lmdb",
    "stackwise-modes",
    "stackwise-tensorboard",
    "stackwise-huggingface",
    "stackwise-text",
)

INTRODUCTION = """\
# Configuration reference

<!-- Written by docs/make_config_reference.py from the options' own help texts; don't edit it. -->

A run is one TOML file. Every key has a default unless its row says *required*, so the file only holds what differs.
`stackwise check FILE` finds its mistakes all at once, before anything runs; what depends on the text or on the rack's
size as a whole, `stackwise plan` refuses.

**Where values come from**, each over the one before it:

1. the defaults on this page;
2. the file named by `extends = "base.toml"` at the top of the file, relative to it, which may extend another;
3. the file itself;
4. environment variables: `STACKWISE_TRAINING__BATCH_SIZE=8` sets `training.batch_size`, a double underscore being the
   dot;
5. `--set training.batch_size=8` on the command line.

**Types** are strict: `"8"` is no integer, `1.9` neither, and an integer will do for a number. A *size* is a number of
bytes or a string such as `"20 GB"` or `"512 MiB"`. A *table by whole number* is one such as `{ 0 = 0.5, 3 = 2 }`;
layers add to tables key by key. A key that is *left out* by default can't be set back to that by a higher layer.

**Paths** that the table calls relative to the TOML are taken from the folder of the file that sets them, or from the
working directory where the environment or `--set` does. The others are relative to the working directory.

**Hooks.** `mask_schedule`, `precision`, `adapter`, `cache_backend`, `trainer_mode`, `optimizer`, `objective`,
`tracker` and the texts of `[data]` are plugins'. `use` picks one by its name or an alias, and the other keys of its
table are that plugin's own options, listed below it. A name alone is short for a table with nothing but `use`: `trunk =
"bf16"` is `trunk = { use = "bf16" }`. In place of a text's table a string is the path of its files: `corpus = "books"`
is `corpus = { use = "files", path = "books" }`. A *table of precisions by whole number* has such a choice for each
number: `stacks = { 0 = "bf16", 3 = { use = "fp16", initial_scale = 1024 } }`, the 3 of which may also be a table
`[precision.stacks.3]`. Where two packages have one name, `use = "package:name"` picks one. A layer that changes `use`
drops the options that the layers below it gave. `stackwise plugins` lists what is installed, also what others have
published.
"""

EXPORT = """
## `stackwise export`

`checkpoint_format` is a plugin's as well. It has no table: [`rack.init_from`](#rack) finds the format of a directory,
and `stackwise export RUN --to FORMAT DIR` writes one, with the format's options as `--KEY VALUE`.
"""


def reference(registry: Registry) -> str:
    """Return the whole page, with the options of this repository's plugins."""
    return INTRODUCTION + "".join(_sections(registry))


def _sections(registry: Registry) -> Iterator[str]:
    yield from _tables(registry)
    yield EXPORT
    for declared in registry.implementations("checkpoint_format"):
        if declared.distribution in OURS:
            rows = describe(registry.options_class(declared))
            dashed = [attrs.evolve(row, key=f"--{row.key.replace('_', '-')}") for row in rows]
            yield _implementation(declared, dashed, declared.name, asked_by="--to {} DIR")


def _tables(registry: Registry) -> Iterator[str]:
    for attribute in attrs.fields(Config):
        if attribute.metadata["hook"]:
            yield f"\n## `[{attribute.name}]`\n\n{attribute.metadata['help']}{_default(attribute.name)}\n"
        else:
            table = attribute.type
            yield f"\n## `[{attribute.name}]`\n\n{inspect.getdoc(table)}\n\n{_table(describe(table))}"
        for hook in {field.hook for field in hook_fields() if field.path[0] == attribute.name}:
            described: dict[tuple[OptionRow, ...], str] = {}
            for declared in registry.implementations(hook):
                if declared.distribution in OURS:
                    rows = describe(registry.options_class(declared))
                    yield _implementation(declared, rows, described.setdefault(tuple(rows), declared.name))


def _default(name: str) -> str:
    uses = [row.default for row in describe(Config) if row.key == name]
    return "" if uses == ["left out"] else f" By default `use = {uses[0]}`."


def _implementation(declared: Declared, rows: list[OptionRow], first: str, asked_by: str = 'use = "{}"') -> str:
    """Describe an implementation.

    Args:
        first: the name of the first one of its hook that has the same options.
        asked_by: how it is chosen.
    """
    summary, aliases = declared.implementation.summary, declared.implementation.aliases
    also = f" Also {', '.join(f'`{alias}`' for alias in aliases)}." if aliases else ""
    heading = f"\n### `{asked_by.format(declared.name)}`\n\n{summary} ({declared.distribution}).{also}\n"
    if not rows:
        return heading
    return (
        f"{heading}\n{_table(rows)}" if first == declared.name else f"{heading}\nIts options are those of `{first}`.\n"
    )


def _table(rows: list[OptionRow]) -> str:
    lines = ["| key | type | default | what it does |", "| --- | --- | --- | --- |"]
    for row in rows:
        default = {"": "*required*", "left out": "left out"}.get(row.default, f"`{row.default}`")
        lines.append(f"| `{row.key}` | {_cell(row.type)} | {_cell(default)} | {_cell(row.help)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that a Markdown table leaves as it is."""
    return re.sub(r"[|<]", r"\\\g<0>", text)


if __name__ == "__main__":
    TARGET.write_text(reference(Registry.discover(environ={})), encoding="utf-8")
