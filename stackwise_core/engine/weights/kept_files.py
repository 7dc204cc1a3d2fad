"""Writer of the files that a run's directory keeps: its configuration, and copies of the files that using it takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve

from stackwise_core.config.dump import dump
from stackwise_core.config.model import Config
from stackwise_core.config.paths import with_paths_relative_to
from stackwise_core.config.source_vocabulary import BYTES
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer, load_tokenizer
from stackwise_core.errors import StackwiseError
from stackwise_core.registry import Plugin, Registry
from stackwise_core.run_files.names import CONFIG, PLUGINS, TOKENIZER
from stackwise_core.system.files import sha256


def write_config(directory: RunDirectory, config: Config, *, own_tokenizer: bool, contents: Mapping[str, str]) -> None:
    """Write a configuration into a run's directory, with paths relative to it.

    The manifest notes where that was, for a run that is moved alone, and what was at each path.

    Args:
        own_tokenizer: whether the directory has a copy of the tokenizer, which is named then.
        contents: hashes by the dotted key of a path; for a run that has begun, what it began with.
    """
    here = os.path.realpath(directory.path)
    text = configuration_text(directory, config, own_tokenizer=own_tokenizer)
    directory.write_text(CONFIG, text, written_in=here, contents=dict(contents))


def configuration_text(directory: RunDirectory, config: Config, *, own_tokenizer: bool) -> str:
    """Return a configuration as TOML for a run's directory, as ``write_config`` writes it."""
    if own_tokenizer:
        config = evolve(config, data=evolve(config.data, tokenizer=str(directory.path.absolute() / TOKENIZER)))
    return dump(with_paths_relative_to(config, directory.path))


def named_files(config: Config, registry: Registry) -> list[Path]:
    """Return the files that ``keep_tokenizer`` and ``keep_plugins`` copy."""
    tokenizer = [] if config.data.tokenizer == BYTES else [Path(config.data.tokenizer)]
    return [*tokenizer, *(Path(plugin.source) for plugin in _loaded_files(registry))]


def keep_tokenizer(directory: RunDirectory, config: Config, tokenizer: Tokenizer) -> bool:
    """Copy the tokenizer's file into a run's directory, unless it is there; return whether there is such a file.

    Raises:
        StackwiseError: it isn't the file any more that was read.
    """
    named = config.data.tokenizer
    if named == BYTES:
        return False

    def fill(beside: Path) -> None:
        shutil.copyfile(named, beside)
        data = config.data
        copy = load_tokenizer(str(beside), mask_token=data.mask_token, special_ids=data.special_ids)
        if copy.fingerprint != tokenizer.fingerprint:
            raise StackwiseError(f"{named}: the file changed while it was read; run again when it is finished")

    if not directory.has(TOKENIZER):
        directory.manifest.write(TOKENIZER, fill)
    return True


def keep_plugins(directory: RunDirectory, registry: Registry) -> None:
    """Copy the local plugin files into a run's directory, with what each of them declares, in place of older ones."""
    for plugin in _loaded_files(registry):
        source = Path(plugin.source)
        name = f"{PLUGINS}/{source.name}"
        if not directory.has(name) or directory.manifest.about(name)["sha256"] != sha256(source):
            declares = [[declared.hook, each] for declared in plugin.declared for each in declared.names]
            directory.copy_in(name, source, declares=declares)


def _loaded_files(registry: Registry) -> list[Plugin]:
    return [plugin for plugin in registry.plugins if plugin.local and plugin.problem is None]
