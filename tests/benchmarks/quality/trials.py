"""The runs of a benchmark, and the identity of each."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from stackwise_core.config.load import structure
from stackwise_core.engine.phases.setup import Setup, set_up
from stackwise_core.engine.plan.plan import ESTIMATES, Plan
from stackwise_core.errors import UsageError
from stackwise_core.registry import Registry
from tests.benchmarks.quality.baselines import baselines
from tests.benchmarks.quality.budgets import matching_steps, plan_with, total
from tests.benchmarks.quality.regimes import BASELINE, BUDGETS, REGIMES, configuration


@frozen
class Trial:
    """One run: a regime on a corpus with a seed, of a size that one or more budgets give it."""

    corpus: str
    regime: str
    budgets: tuple[str, ...]
    seed: int
    steps_per_stack: int
    config: dict[str, Any]
    flops: float
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

    def settings(self, regime: str, corpus: str, **changes: Any) -> dict[str, Any]:
        """A regime's configuration on a corpus."""
        further = {"run.device": self.device, **self.changes, **changes}
        return configuration(REGIMES[regime], self.corpora[corpus], self.tokens_directory, further)

    def setup(self, regime: str, corpus: str) -> Setup:
        """A regime's set-up on a corpus."""
        registry = Registry.discover()
        return set_up(structure(self.settings(regime, corpus), registry), registry)

    def baselines(self, corpus: str) -> dict[str, float]:
        """The bounds of models without a network, in nats a byte."""
        setup = self.setup(BASELINE, corpus)
        return baselines(setup.corpus, setup.tokenizer)

    def targets(self, corpus: str) -> dict[str, float]:
        """Return the baseline's cost, by budget."""
        setup = self.setup(BASELINE, corpus)
        stacks = setup.spec.stacks
        if self.steps % stacks:
            raise UsageError(f"--steps {self.steps}: expected a multiple of the {stacks} stacks")
        plan = plan_with(setup, self.steps // stacks)
        return {budget: total(plan, budget) for budget in BUDGETS}

    def trials(self, regime: str, corpus: str, targets: dict[str, float]) -> Iterator[Trial]:
        """A regime's runs on a corpus, one for each number of steps and each seed.

        Raises:
            UsageError: the regime's configuration is wrong, or its mode can't plan it.
        """
        setup = self.setup(regime, corpus)
        by_steps: dict[int, list[str]] = {}
        for budget, target in targets.items():
            by_steps.setdefault(matching_steps(setup, budget, target), []).append(budget)
        for steps, budgets in by_steps.items():
            plan = plan_with(setup, steps)
            for seed in range(self.seeds):
                changes = {"run.seed": seed, "training.steps_per_stack": steps}
                config = self.settings(regime, corpus, **changes)
                yield Trial(
                    corpus=corpus,
                    regime=regime,
                    budgets=tuple(budgets),
                    seed=seed,
                    steps_per_stack=steps,
                    config=config,
                    flops=total(plan, "flops"),
                    key=identity(config, setup, plan, self.threads),
                )


def identity(config: dict[str, Any], setup: Setup, plan: Plan, threads: int) -> str:
    """A hash of all that decides a run's result, but for the version of the code.

    The phases are in it too, so that a mode which plans otherwise than before makes another run.
    """
    paths = ("corpus", "tokens_directory")
    settings = config | {"data": {name: value for name, value in config["data"].items() if name not in paths}}
    phases = [
        {name: value for name, value in phase.items() if name not in ESTIMATES} for phase in plan.to_json()["phases"]
    ]
    decisive = [settings, phases, setup.corpus.fingerprint, setup.device.type, threads, torch.__version__]
    return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=12).hexdigest()
