"""The Python interface, ``import stackwise_core as sw``; the command line is built on it.

A function imports what it needs when it is called: reading a configuration takes no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from stackwise_core.config.errors import ConfigError as ConfigError
from stackwise_core.config.sources import Overrides
from stackwise_core.engine.loop.beginning import Configuration, begin, read
from stackwise_core.engine.loop.beginning import Finished as Finished
from stackwise_core.errors import StackwiseError as StackwiseError
from stackwise_core.errors import UnavailableError as UnavailableError
from stackwise_core.errors import UsageError as UsageError
from stackwise_core.system.process_state import own_state, preserved_state

if TYPE_CHECKING:
    from stackwise_core.engine.draws.sequences import Progress
    from stackwise_core.engine.evaluation.loaded_rack import LoadedRack
    from stackwise_core.engine.events.events import Event, Listener, RunResult
    from stackwise_core.engine.events.stopping import Stopping
    from stackwise_core.engine.phases.setup import Setup
    from stackwise_core.engine.plan.plan import Plan


def load_config(
    source: str | os.PathLike[str] = "stackwise.toml",
    *,
    overrides: Overrides = (),
    plugins: Sequence[str] = (),
) -> Configuration:
    """Read a configuration and check it. Nothing is run, and torch isn't loaded.

    Args:
        source: a TOML file, or the directory of a run.
        overrides: single keys, which win: ``{"training.batch_size": 8}``, or as for ``--set``.
        plugins: as for ``-p``: ``"no:NAME"``, ``"FILE.py"``.

    Raises:
        ConfigError: with every mistake that was found; one of the kinds of ``UsageError``.
        UnavailableError: plugins or packages that it names aren't there.
        UsageError: it is neither a configuration nor the directory of a run.
    """
    return read(source, overrides=overrides, plugins=plugins)


def plan(configuration: Configuration | str | os.PathLike[str], *, tokenised: Progress | None = None) -> Plan:
    """Plan a run: its phases, with their memory and disk in bytes, floating-point operations and seconds.

    Nothing is trained. What ``stackwise plan`` and ``run`` would refuse for want of memory or disk is planned all the
    same.

    Args:
        configuration: what ``load_config`` gave, or what it would be given.
        tokenised: called with the bytes of text that were just tokenised.

    Raises:
        UsageError: the text, the tokenizer or the rack can't serve, or the mode can't plan it.
        UnavailableError: the device, a plugin or a package isn't there.
    """
    return prepare(_read(configuration), tokenised).plan


def run(
    configuration: Configuration | str | os.PathLike[str],
    *,
    fresh: bool = False,
    accept_change: bool = False,
    beyond_machine: bool = False,
    listener: Listener | None = None,
    tokenised: Progress | None = None,
) -> RunResult:
    """Train, into a directory of its own. An interrupted last run of that name is resumed.

    Args:
        configuration: from a TOML file; or from a run's directory, which is resumed. As ``plan``, it takes the
            name of either, too.
        fresh: begin anew, though an earlier run was interrupted.
        accept_change: resume though the configuration has changed, where no weight depends on what has, or though a
            plugin has within a phase.
        beyond_machine: begin though the plan needs several times the memory that there is, or weights that the disk
            doesn't hold.
        listener: called with each event of ``stackwise_core.engine.events.events``.
        tokenised: as ``plan``.

    Raises:
        Finished: a ``UsageError``: the run that the configuration is of has nothing left to do.
        UsageError: as ``plan``; or the plan is over ``training.memory_budget``, the room on the disk or all that the
            machine could do; or the interrupted run began with another configuration.
        UnavailableError: as ``plan``.
        StackwiseError: the run failed. The last checkpoint is on disk, as with all that follow.
        OSError, MemoryError: the disk or the memory is full.
        KeyboardInterrupt: a SIGINT, SIGTERM or SIGHUP. In the main thread the first one finishes the step and leaves a
            checkpoint before this is raised; a second one doesn't wait.
    """
    begun = begin(_read(configuration), fresh=fresh, accept_change=accept_change)
    return prepare(begun, tokenised).run(listener or (lambda event: None), beyond_machine=beyond_machine)


def _read(configuration: Configuration | str | os.PathLike[str]) -> Configuration:
    return configuration if isinstance(configuration, Configuration) else load_config(configuration)


def prepare(configuration: Configuration, tokenised: Progress | None = None) -> Prepared:
    """Prepare everything before a run's first step: its text as tokens, its plan."""
    # torch comes in here, after the configuration was found to be right.
    with own_state():
        from stackwise_core.engine.phases.setup import set_up
        from stackwise_core.engine.plan.block_sizing import set_up_divided
        from stackwise_core.engine.plan.plan import make_plan
        from stackwise_core.engine.process.threads import computing_threads

        parent = Path(configuration.config.run.directory).absolute()  # as it is before anybody else's code runs
        with computing_threads(configuration.config.run.threads):
            chosen = configuration.config, configuration.registry, tokenised
            if configuration.config.rack.blocks_per_stack == "auto":
                setup, plan = set_up_divided(*chosen)
            else:
                setup = set_up(*chosen)
                plan = make_plan(setup)
            return Prepared(configuration, setup, plan, parent)


@frozen
class Prepared:
    """A run that can be trained."""

    configuration: Configuration
    setup: Setup
    plan: Plan
    parent: Path
    """Directory that a new run's directory is made in."""

    def run(self, listener: Listener, stopping: Stopping | None = None, *, beyond_machine: bool = False) -> RunResult:
        """Train the run, or resume the one that ``begin`` found.

        Args:
            stopping: whether somebody asked the run to stop; it heeds signals while the run lasts.
            beyond_machine: as ``run``.
        """
        from stackwise_core.engine.events.stopping import Stopping
        from stackwise_core.engine.loop.engine import Engine
        from stackwise_core.engine.runs.directory import RunDirectory

        def tell(event: Event) -> None:
            # A listener that draws numbers continues its own sequence.
            with preserved_state(generators=False):
                listener(event)

        stopping = stopping or Stopping()
        registry, directory = self.configuration.registry, self.configuration.directory
        begun = None if directory is None else RunDirectory(directory)
        with stopping.heeding(), own_state(self.setup.device):
            engine = Engine(
                self.setup, self.plan, registry, tell, begun, stopping, self.parent, beyond_machine=beyond_machine
            )
            return engine.run()


def load_rack(
    path: str | os.PathLike[str],
    *,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    precision: str | None = None,
    stream: bool | None = None,
    plugins: Sequence[str] = (),
) -> LoadedRack:
    """Load the rack of a finished run as a torch module, with ``sample`` and ``evaluate``.

    Args:
        path: the run's directory.
        device: in place of the run's own ``run.device``.
        precision: a name such as ``"nf4"`` or ``"fp32"``, at which all stacks are held; None: as the run left them.
        stream: whether one stack is in memory at a time, read from disk each time that it is passed; None: whether
            they don't fit together into what memory is free.
        plugins: as for ``-p``.

    Raises:
        UsageError: it isn't a run, it never finished, or there is no such precision.
        UnavailableError: a plugin, a package or the device isn't there.
        StackwiseError: a file is missing or damaged.
    """
    with own_state():
        from stackwise_core.engine.evaluation.finished import FinishedRun
        from stackwise_core.engine.evaluation.loaded_rack import LoadedRack

        run = FinishedRun.open(Path(path), device=device, precision=precision, plugins=plugins)
        return LoadedRack(run, stream=stream)
