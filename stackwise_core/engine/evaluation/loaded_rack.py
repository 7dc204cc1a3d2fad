"""A finished run's rack as a torch module, to be evaluated, or asked for its logits or predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import NoReturn

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from stackwise_core.engine.draws.sequences import Progress
from stackwise_core.engine.evaluation.evaluate import Evaluation, Likelihood
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.process.threads import computing_threads
from stackwise_core.engine.rack.not_finite import refuse_weights
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import BandRoute
from stackwise_core.registry.official import MOVED_FROM_RACK
from stackwise_core.system.process_state import own_state


class MovedMethod(UsageError, AttributeError):
    """A method of an earlier version that is a function of another package now."""

    def __init__(self, name: str) -> None:
        package, imported, call = MOVED_FROM_RACK[name]
        lacks = "" if find_spec(package.replace("-", "_")) else f", which is not installed: pip install {package}"
        super().__init__(f"rack.{name}(...) is {call} of {package} now ({imported}){lacks}")


class LoadedRack(nn.Module):
    """A rack whose weights stay as they are.

    B sequences of T tokens; V ids.

    Args:
        stream: whether one stack is in memory at a time, read anew each time that it is passed; None: whether they
            don't fit together.

    Attributes:
        ends: embedding and head, by the stack whose own they are where each has its own; none where these are
            streamed.
        stacks: by number; none where they are streamed.
    """

    def __init__(self, run: FinishedRun, *, stream: bool | None = None) -> None:
        super().__init__()
        self.run = evolve(run, streams=run.bytes > run.parts.memory_budget if stream is None else stream)
        if not self.run.streams:
            run.forward.placement.keep_all_ends()
        shared = run.parts.spec.ends == "shared" or not self.run.streams
        all_ends = run.forward.placement.all_ends() if shared else ()
        self.ends = nn.ModuleDict({str(owner or 0): ends for owner, ends in all_ends})
        self.stacks = nn.ModuleDict()
        self._bring()

    def _bring(self) -> None:
        """Bring all stacks to where they are to be."""
        every = sorted({stack for route in self.run.routes for stack in route.path})
        self.run.forward.placement.bring(every, active=self.run.active, streamed=every if self.run.streams else ())
        if not self.run.streams:
            self.stacks = nn.ModuleDict({str(index): self.run.forward.placement.stack(index) for index in every})
        self.requires_grad_(False)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute with as many torch threads as in the run."""
        with computing_threads(self.run.parts.config.run.threads):
            yield

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoadedRack:
        raise UsageError(
            "a loaded rack can't be moved or cast, since quantised stacks can't: name device and precision when it is "
            "loaded"
        )

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name in MOVED_FROM_RACK:
            raise MovedMethod(name)
        return super().__getattr__(name)

    @property
    def spec(self) -> RackSpec:
        """Shape of the rack."""
        return self.run.parts.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of its text."""
        return self.run.parts.tokenizer

    @property
    def device(self) -> torch.device:
        """Device on which it computes."""
        return self.run.parts.device

    @property
    def seq_len(self) -> int:
        """Most tokens that it sees at a time."""
        return self.spec.seq_len

    @property
    def seed(self) -> int:
        """The run's."""
        return self.run.parts.config.run.seed

    @property
    def causal(self) -> bool:
        """Whether it predicts each token from those before it, and nothing is masked."""
        return self.run.causal

    @property
    def has_time_input(self) -> bool:
        """Whether its predictions depend on the mask fraction that it is told."""
        return self.spec.time_encoding is not None

    @property
    def routes(self) -> tuple[BandRoute, ...]:
        """Routes through its stacks, by the mask fraction."""
        return self.run.routes

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Numbers of stacks after which it can be read out; of a banded rack, whose stacks stand side by side, all."""
        if len(self.routes) > 1:
            return (len({stack for route in self.routes for stack in route.path}),)
        path = self.routes[0].path
        return tuple(place for place, stack in enumerate(path, 1) if stack in self.run.exits or place == len(path))

    def at_depth(self, depth: int | None) -> AtDepth:
        """Return the rack as it is after so many stacks; None: all of them.

        Raises:
            UsageError: the head was never trained to read there.
        """
        if depth is not None and depth not in self.depths:
            known = ", ".join(map(str, self.depths))
            raise UsageError(f"depth {depth}: {self.run.path} can be read out at {known}.")
        return AtDepth(self, depth or self.depths[-1])

    def path(self, fraction: float, depth: int | None = None) -> tuple[int, ...]:
        """Return the stacks that a sequence passes of which this share is masked."""
        route = next(route for route in self.routes if route.serves(fraction))
        return route.path if depth is None or len(self.routes) > 1 else route.path[:depth]

    @own_state()
    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        segments: Tensor | None = None,
        fraction: Tensor | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """Compute logits [B, T, V], the mask token's as the head gives it.

        Args:
            ids: int [B, T], the mask token where a token is hidden.
            segments: int [B, T], 0 at padding, else the number of a document within its sequence, which sees no other.
                None: each sequence is one document.
            fraction: float64 [B], shares of the tokens that are masked, which choose the route of a banded rack and are
                what a rack with a time input is told. None: as counted in ``ids``.
            depth: after how many stacks to read.

        Raises:
            UsageError: there are more than ``seq_len`` tokens, or the head can't read at this depth.
        """
        ids, segments = self._checked(ids, segments)
        if fraction is None:
            counted = segments > 0
            masked = (ids == self.tokenizer.mask_id) & counted
            fraction = masked.sum(1).double() / counted.sum(1).clamp(min=1)
        fraction, depth = fraction.double(), self.at_depth(depth).depth
        paths = [self.path(each, depth) for each in fraction.tolist()]
        logits: Tensor | None = None
        with self.computing():
            self._ready()
            for path in dict.fromkeys(paths):
                rows = torch.tensor([place for place, each in enumerate(paths) if each == path])
                part = self.run.forward.logits(path, ids[rows], segments[rows], fraction[rows])
                logits = part.new_empty(*ids.shape, self.spec.vocab_size) if logits is None else logits
                logits[rows.to(part.device)] = part
        assert logits is not None
        return logits

    def predict(
        self, inputs: Tensor, segments: Tensor | None, fraction: float, where: Tensor, depth: int | None = None
    ) -> Tensor:
        """Compute logits float32 [N, V] of the tokens possible at some positions; the mask token's is -inf.

        Args:
            inputs: int64 [B, T] ids.
            segments: int [B, T], as for ``forward``.
            fraction: the share of the tokens that is masked in each sequence.
            where: int64 [N], flat positions of ``inputs``; of a causal rack those before the tokens in question.
            depth: after how many stacks to read.

        Raises:
            UsageError: as ``forward``.
        """
        inputs, segments = self._checked(inputs, segments)
        return self.at_depth(depth).predict(inputs, segments, fraction, where)

    def _checked(self, ids: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ids and segments, if they are such as the rack can take."""
        if not isinstance(ids, Tensor):
            raise UsageError(f"expected ids as a tensor, found {type(ids).__name__}")
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.seq_len or not len(ids):
            raise UsageError(f"expected ids [sequences, up to {self.seq_len} tokens], found {list(ids.shape)}")
        if ids.is_floating_point():
            raise UsageError(f"expected ids as whole numbers, found {ids.dtype}")
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.spec.vocab_size:
            raise UsageError(f"expected ids from 0 to {self.spec.vocab_size - 1}")
        segments = torch.ones_like(ids) if segments is None else segments
        if segments.shape != ids.shape:
            raise UsageError(f"expected segments {list(ids.shape)}, as ids, found {list(segments.shape)}")
        return ids, segments

    def _ready(self) -> None:
        """Bring all stacks into memory again, where an evaluation of bands has let some go."""
        if any(int(index) not in self.run.forward.placement for index in self.stacks):
            self._bring()

    @own_state()
    def evaluation(
        self,
        corpus: str | os.PathLike[str] | None = None,
        *,
        text_field: str | None = None,
        draws: int | None = None,
        sequences: int | None = None,
        bands: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        tokenised: Progress | None = None,
    ) -> Evaluation:
        """Return the settings that ``evaluate`` measures with; the run's own where one is left out.

        Args:
            corpus: a text in place of the run's validation split, as ``data.corpus``.
            text_field: as ``data.text_field``, of that text.
            draws: masks a sequence.
            sequences: how many to use, evenly spaced.
            bands: intervals of the mask fraction.
            seed: of the masks.
            batch_size: sequences a forward pass.
            tokenised: as for ``stackwise_core.plan``.

        Raises:
            UsageError: the text can't be read, there is too little of it, or a number is out of its range.
        """
        if bands is not None and len(self.routes) > 1:
            raise UsageError(
                f"bands: {self.run.path} is banded, and has a band for each of its {len(self.routes)} stacks."
            )
        asked = {"draws": draws, "sequences": sequences, "bands": bands, "seed": seed, "batch_size": batch_size}
        path = None if corpus is None else os.fspath(corpus)
        split, notes = self.run.text(path, tokenised, text_field)
        return self.run.evaluation(split, notes, **{name: value for name, value in asked.items() if value is not None})

    @own_state()
    def evaluate(
        self,
        corpus: Evaluation | str | os.PathLike[str] | None = None,
        *,
        text_field: str | None = None,
        draws: int | None = None,
        sequences: int | None = None,
        bands: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Likelihood]:
        """Compute upper bounds on the negative log-likelihood of a text, by depth, the whole rack's last.

        Args:
            corpus: a text in place of the run's validation split, or what ``evaluation`` gave.
            text_field, draws, sequences, bands, seed, batch_size: as for ``evaluation``.
            progress: called with the sequences done so far, and all that there are to do.

        Raises:
            UsageError: as ``evaluation``.
        """
        evaluation = corpus
        if not isinstance(evaluation, Evaluation):
            evaluation = self.evaluation(
                evaluation,
                text_field=text_field,
                draws=draws,
                sequences=sequences,
                bands=bands,
                seed=seed,
                batch_size=batch_size,
            )
        with self.computing():
            return self.run.likelihoods(evaluation, progress)

    def refuse_predictions(self) -> NoReturn:
        """Refuse predictions that aren't finite.

        Raises:
            StackwiseError: in any case, with the stack and the tensor that isn't finite, if one isn't.
        """
        path = sorted({stack for route in self.routes for stack in route.path})
        refuse_weights(self.run.forward, path, "the rack's predictions aren't finite")


@frozen
class AtDepth:
    """A rack that is read out after so many of its stacks."""

    rack: LoadedRack
    depth: int

    @own_state()
    @torch.no_grad()
    def predict(self, inputs: Tensor, segments: Tensor, fraction: float, where: Tensor) -> Tensor:
        """Compute the same as ``LoadedRack.predict``, without checking the ids: a sampler asks at every step."""
        self.rack._ready()
        path, fractions = (
            self.rack.path(fraction, self.depth),
            inputs.new_full((len(inputs),), fraction, dtype=torch.float64),
        )
        return self.rack.run.forward.predict(path, inputs, segments, fractions, where)
