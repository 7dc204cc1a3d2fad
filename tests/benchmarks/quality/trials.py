"""The runs of a benchmark, and the identity of each."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen

from stackwise_core.config.load import structure
from stackwise_core.engine.phases.setup import Setup, set_up
from stackwise_core.engine.plan.phase_plan import PhasePlan
from stackwise_core.engine.plan.plan import Plan
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.registry import Registry
from tests.benchmarks.quality.baselines import baselines
from tests.benchmarks.quality.budgets import flops_of, matching_steps, plan_with
from tests.benchmarks.quality.regimes import BASELINE, REGIMES, configuration


@frozen
class Trial:
    """One run: a regime on a corpus with a seed, with the FLOPs of the baseline."""

    corpus: str
    regime: str
    seed: int
    steps_per_stack: int
    config: dict[str, Any]
    flops: float
    tokens: int
    state_bytes: int
    """Most that weights, gradients, optimizer state and activations take in memory at once, by the plan."""
    key: str
    """The same for what gives the same result."""


@frozen
class Bench:
    """Settings that all runs share."""

    corpora: dict[str, Path]
    tokens_directory: Path
    steps: int
    """Optimizer steps of the baseline."""
    seeds: int
    threads: int
    device: str
    changes: dict[str, Any]
    """Keys that differ from BASE in every regime."""

    def settings(self, regime: str, corpus: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration on a corpus.

        Args:
            keys: those in which the regime differs from BASE.
        """
        changes = {"run.device": self.device, **self.changes, **keys}
        return configuration(REGIMES[regime], self.corpora[corpus], self.tokens_directory, changes)

    def setup(self, regime: str, corpus: str) -> Setup:
        """A regime's set-up on a corpus, as its costs are planned."""
        registry = Registry.discover()
        return set_up(structure(self.settings(regime, corpus, REGIMES[regime].planned), registry), registry)

    def baselines(self, corpus: str) -> dict[str, float]:
        """The bounds of models without a network, in nats a byte."""
        setup = self.setup(BASELINE, corpus)
        return baselines(setup.corpus, setup.tokenizer)

    def target(self, corpus: str) -> float:
        """Return the baseline's FLOPs."""
        setup = self.setup(BASELINE, corpus)
        stacks = setup.spec.stacks
        if self.steps % stacks:
            raise UsageError(f"--steps {self.steps}: expected a multiple of the {stacks} stacks")
        return flops_of(plan_with(setup, self.steps // stacks))

    def trials(self, regime: str, corpus: str, target: float) -> Iterator[Trial]:
        """A regime's runs on a corpus, one for each seed.

        Raises:
            UsageError: the regime's configuration is wrong, or its mode can't plan it.
        """
        setup = self.setup(regime, corpus)
        steps = matching_steps(setup, target)
        plan = plan_with(setup, steps)
        for seed in range(self.seeds):
            changes = {"run.seed": seed, "training.steps_per_stack": steps}
            config = self.settings(regime, corpus, {**REGIMES[regime].run, **changes})
            yield Trial(
                corpus=corpus,
                regime=regime,
                seed=seed,
                steps_per_stack=steps,
                config=config,
                flops=flops_of(plan),
                tokens=sum(phase.tokens for phase in plan.phases),
                state_bytes=max(map(state_bytes, plan.phases)),
                key=identity(config, setup, plan, self.threads),
            )


def state_bytes(phase: PhasePlan) -> int:
    """Return what a phase holds in memory at once: weights, gradients, optimizer state and activations."""
    memory = phase.memory
    return memory.weights + memory.gradients + memory.optimizer + memory.activations


def identity(config: dict[str, Any], setup: Setup, plan: Plan, threads: int) -> str:
    """A hash of all that decides a run's result, but for the version of the code.

    The phases are in it too, so that a mode which plans otherwise than before makes another run.
    """
    paths = ("corpus", "tokens_directory")
    settings = config | {"data": {name: value for name, value in config["data"].items() if name not in paths}}
    phases = [[decisive(each.phase), each.steps, each.schedule] for each in plan.phases]
    all_of_it = [settings, phases, setup.corpus.fingerprint, setup.device.type, threads, torch.__version__]
    return hashlib.blake2b(json.dumps(all_of_it, sort_keys=True).encode(), digest_size=12).hexdigest()


def decisive(phase: Phase) -> dict[str, Any]:
    """Return what a mode set of a phase: a field that is added, and stands at its default, makes no other run."""
    defaults = Phase(name="", path=(0,), trains={0})
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in asdict(phase, recurse=False).items()
        if value != getattr(defaults, name)
    }
