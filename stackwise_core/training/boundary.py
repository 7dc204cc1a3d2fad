"""Boundaries: the trunk's output for any draw, computed once, kept in a store, and never stale.

A store belongs to a namespace, a hash of all that a boundary depends on but the draw; within it a key is a hash of the
draw. So what was computed under other weights, masks or settings can't be found, and needn't be invalidated.

Between two stacks a boundary is rounded to the store's number format, also where it is on its way further up: its bits
are the same whether it came from the store, from the boundary below, or from the tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np
import torch
import xxhash
from attrs import asdict, define
from torch import Tensor

from stackwise_core.data.draws import Drawer, Draws
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.cache_backend import ActivationStore, CacheStats, Key, Layout, MissingEntries
from stackwise_core.rack.residency import Residency
from stackwise_core.training.codec import decode, encode
from stackwise_core.training.order import Order, chunk_size

FORMAT = 1


def draw_keys(draws: Draws, with_time: bool) -> list[Key]:
    """16 bytes a sequence: xxh3-128 of its input ids, mask bits, segments, and its time where the network gets that."""
    batch, tokens = draws.inputs.shape
    mask = np.zeros(batch * tokens, dtype=bool)
    mask[draws.masked.numpy()] = True
    bits = np.packbits(mask.reshape(batch, tokens), axis=1)
    ids = draws.inputs.numpy().astype("<i4")
    segments = draws.segments.numpy().astype("<i4")
    times = draws.fraction.numpy().astype("<f8")[:, None] if with_time else np.empty((batch, 0))
    return [
        xxhash.xxh3_128_digest(b"".join(part[row].tobytes() for part in (ids, bits, segments, times)))
        for row in range(batch)
    ]


def _fold_tensors(digest: hashlib.blake2b, tensors: dict[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def namespace(residency: Residency, trunk: Sequence[int], layout: Layout, settings: dict[str, object]) -> str:
    """The name of a boundary's store: a hash of the settings and of every weight below the boundary.

    Args:
        settings: what else decides the bits: tokenizer, precisions and their options, device.
    """
    spec = residency.spec
    manifest = {
        "format": FORMAT,
        "torch": torch.__version__,
        "layout": asdict(layout),
        "chunk": chunk_size(layout.tokens),
        "heads": [spec.n_heads, spec.n_kv_heads, spec.attention, spec.rope_theta, spec.norm_eps],
        "time": [spec.time_encoding, *spec.time_fractions],
        **settings,
    }
    digest = hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16)
    ends = residency.ends(trunk[0]).state_dict()
    _fold_tensors(digest, {name: tensor for name, tensor in ends.items() if name.startswith("embed_")})
    for index in trunk:
        digest.update(f"stack of {spec.blocks[index]} at {type(residency.precision(index)).__qualname__};".encode())
        # The exit norm reads a boundary out; it isn't below it.
        _fold_tensors(digest, {k: v for k, v in residency.tensors(index).items() if not k.startswith("norm.")})
    return digest.hexdigest()


@define
class BoundaryCounts:
    """How many activations a phase read from the store, and how many it had to compute."""

    computed: int = 0
    read: int = 0


class Boundary:
    """The output of a frozen trunk for a phase's draws.

    Args:
        store: keeps activations; None: each window's are held in memory until the next window.
        layout: of the store's entries, or of those that are held.
        below: the boundary of the phase before, where its trunk is the lower part of this one.
        keep_below: whether the one below stays when this one is whole.
    """

    def __init__(
        self,
        trunk: tuple[int, ...],
        residency: Residency,
        drawer: Drawer,
        order: Order,
        store: ActivationStore | None,
        layout: Layout,
        below: Boundary | None = None,
        keep_below: bool = False,
    ) -> None:
        self.trunk, self._residency, self._drawer, self._order = trunk, residency, drawer, order
        self._store, self._layout = store, layout
        self._below, self._keep_below = below, keep_below
        self._held: dict[Key, Tensor] = {}
        self.counts = BoundaryCounts()
        self._before = self._all_stats()

    @property
    def is_stored(self) -> bool:
        """Whether a store keeps activations beyond their window."""
        return self._store is not None

    def prepare(self, window: Iterable[int], number: int) -> Iterator[int]:
        """Make the boundaries of a window's chunks available, computing what isn't; gives each chunk once it is."""
        if self._store is None:
            self._held.clear()
        for chunk in window:
            draws = self._drawer.draw(self._order.chunk(chunk), number)
            keys = self._keys(draws)
            if self._store is None:
                self._held.update(zip(keys, self._compute(draws, keys), strict=True))
            elif not all(self._store.contains(keys)):
                self._store.put(keys, self._compute(draws, keys))
            yield chunk

    def read(self, draws: Draws, number: int) -> Tensor:
        """Hidden states [B, T, D], fp32, on the rack's device, for a batch of the prepared window.

        Raises:
            StackwiseError: the draws aren't those that the boundary was made under. A boundary that saw fewer masks
                would give away what the loss asks for.
        """
        keys = self._keys(draws)
        if self._store is None:
            self._refuse_others(keys, self._held)
            entries = torch.stack([self._held[key] for key in keys])
        else:
            entries = self._fetch(draws, keys, number)
        return decode(entries.to(self._residency.device), self._layout)

    def prefetch(self, draws: Draws) -> None:
        """Say which batch comes next."""
        if self._store is not None:
            self._store.prefetch(self._keys(draws))

    def _keys(self, draws: Draws) -> list[Key]:
        return draw_keys(draws, with_time=self._residency.spec.time_encoding is not None)

    @staticmethod
    def _refuse_others(keys: Iterable[Key], made: Container[Key]) -> None:
        if not all(key in made for key in keys):
            raise StackwiseError(
                "a batch's masks aren't those that its boundary was made under; its loss would see what it asks for"
            )

    def _fetch(self, draws: Draws, keys: list[Key], number: int) -> Tensor:
        """Read a batch from the store; the chunks of what was evicted or damaged are computed again."""
        assert self._store is not None
        size, found = chunk_size(self._layout.tokens), dict[Key, Tensor]()
        while wanted := [key for key in keys if key not in found]:
            try:
                entries = self._store.get(wanted)
            except MissingEntries as missing:
                lost = [place for place, key in enumerate(keys) if key in missing.keys]
                for chunk in sorted({int(draws.samples[place]) // size for place in lost}):
                    again = self._drawer.draw(self._order.chunk(chunk), number)
                    again_keys = self._keys(again)
                    computed = self._compute(again, again_keys).cpu()
                    self._store.put(again_keys, computed)
                    found.update(zip(again_keys, computed, strict=True))
                self._refuse_others([keys[place] for place in lost], found)
                continue
            self.counts.read += len(wanted)
            if not found:
                return entries
            found.update(zip(wanted, entries, strict=True))
        return torch.stack([found[key] for key in keys])

    @torch.no_grad()
    def _compute(self, draws: Draws, keys: list[Key]) -> Tensor:
        """Entries [n, T, row] of one whole chunk."""
        residency = self._residency
        self.counts.computed += len(keys)
        done, hidden = self._from_below(keys)
        if hidden is None:
            hidden = residency.embed(self.trunk[0], draws.inputs, draws.fraction)
        context = residency.context(draws.segments)
        for index in self.trunk[done:]:
            entries = encode(residency.through(index, hidden, context), self._layout)
            hidden = decode(entries, self._layout)
        return entries

    def _from_below(self, keys: list[Key]) -> tuple[int, Tensor | None]:
        """How many stacks of the trunk the boundary below has behind it, and its hidden states, if it has them all."""
        if self._below is None or self._below._store is None:
            return 0, None
        try:
            entries = self._below._store.get(keys)
        except MissingEntries:
            return 0, None
        return len(self._below.trunk), decode(entries.to(self._residency.device), self._layout)

    def drop_below(self) -> None:
        """Do without the boundary below, and delete it unless it is to be kept: this one is whole."""
        if self._below is not None and not self._keep_below:
            self._below.drop()
        self._below = None

    def drop(self) -> None:
        """Delete this boundary."""
        self._held.clear()
        if self._store is not None:
            self._store.drop()
            self._store.close()
            self._store = None

    def close(self) -> None:
        """Leave what is stored where it is, and stop using it."""
        if self._store is not None:
            self._store.close()

    def passed_on(self, drawer: Drawer) -> Boundary:
        """The same boundary for another phase, which has the store from now on."""
        store, self._store = self._store, None
        return Boundary(
            self.trunk, self._residency, drawer, self._order, store, self._layout, keep_below=self._keep_below
        )

    @property
    def evicted(self) -> int:
        """How many activations the store gave up for others in this phase."""
        return self._all_stats().evicted - self._before.evicted

    @property
    def damaged(self) -> int:
        """How many activations the store found damaged in this phase."""
        return self._all_stats().damaged - self._before.damaged

    def _all_stats(self) -> CacheStats:
        return CacheStats() if self._store is None else self._store.stats()
