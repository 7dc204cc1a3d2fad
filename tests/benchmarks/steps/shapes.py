"""Shapes of racks that training steps are measured at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from attrs import frozen

LETTERS = np.frombuffer(b"etaoinshrdlu ", dtype=np.uint8)


@frozen
class Shape:
    """A rack, its batches, and how many steps of them are measured."""

    d_model: int
    heads: int
    d_ff: int
    stacks: int
    blocks: int
    """Blocks of a stack."""
    seq_len: int
    batch: int
    steps: int
    """Steps of a round, an even number; half as many come before them, and don't count."""
    kv_heads: int | None = None
    vocab: int | None = None
    """Rows of the embedding; None: those of bytes."""
    trunk: str | None = None
    """Precision of frozen stacks; None: as those that train."""
    cases: tuple[str, ...] = ("end to end", "trunk recomputed", "input cached", "streamed")
    one_at_a_time: bool = False
    """Whether the ways of a case take turns as a whole, since the memory doesn't hold two of them."""
    lr: float = 3e-4

    @property
    def warm_up(self) -> int:
        """Steps before those that count: a whole window, where the trunk is run for each."""
        return self.steps // 2

    @property
    def taken(self) -> int:
        """Steps of a round, with those that don't count."""
        return self.warm_up + self.steps

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.seq_len

    def settings(self, text: Path, device: str) -> tuple[str, ...]:
        """Return the settings of ``blockwise.toml`` that differ, each as ``--set`` has it."""
        return (
            f'run.device="{device}"',
            f'data.corpus="{text}"',
            "data.validation_fraction=0.0",
            f"data.seq_len={self.seq_len}",
            f"rack.stacks={self.stacks}",
            f"rack.blocks_per_stack={self.blocks}",
            f"rack.d_model={self.d_model}",
            f"rack.n_heads={self.heads}",
            f"rack.d_ff={self.d_ff}",
            *([] if self.kv_heads is None else [f"rack.n_kv_heads={self.kv_heads}"]),
            *([] if self.vocab is None else [f"rack.vocab_size={self.vocab}"]),
            *([] if self.trunk is None else [f"precision.trunk={self.trunk}"]),
            f"training.batch_size={self.batch}",
            f"training.steps_per_stack={self.taken}",
            f"training.window={self.taken * self.batch}",
            f"training.block_lr={self.lr}",
            f"training.embedding_lr={self.lr}",
            "training.lr_schedule=constant",
            "training.warmup=0",
            "training.masks_per_sample=1",
        )


SHAPES = {
    "tiny": Shape(d_model=64, heads=2, d_ff=192, stacks=2, blocks=1, seq_len=32, batch=128, steps=4),
    "default": Shape(d_model=128, heads=8, d_ff=384, stacks=3, blocks=1, seq_len=128, batch=16, steps=24),
    "256": Shape(d_model=256, heads=8, d_ff=704, stacks=4, blocks=1, seq_len=256, batch=16, steps=12),
    "1024": Shape(d_model=1024, heads=16, d_ff=2816, stacks=2, blocks=1, seq_len=256, batch=16, steps=4),
    "mid": Shape(
        d_model=1024,
        heads=16,
        d_ff=2816,
        stacks=4,
        blocks=4,
        seq_len=1024,
        batch=16,
        steps=16,
        cases=("end to end", "first stack", "trunk recomputed", "input cached", "streamed"),
    ),
    "70B": Shape(
        d_model=8192,
        heads=64,
        kv_heads=8,
        d_ff=28672,
        stacks=2,
        blocks=1,
        seq_len=2048,
        batch=4,
        steps=8,
        vocab=129_282,
        trunk="nf4",
        cases=("first stack", "input cached"),
        one_at_a_time=True,
        lr=3e-5,
    ),
}
"""Shapes by name. ``default`` is the rack of stackwise.toml; ``mid`` and ``70B`` want a large device."""
ON_A_CPU = ("default", "256", "1024")
ON_A_DEVICE = ("default", "256", "mid", "70B")


def write_texts(shape: Shape, folder: Path) -> tuple[Path, Path]:
    """Write as much text as a shape's steps take, as one document and as many of a third of a sequence each."""
    # Whole windows, a byte a token: a chunk with fewer sequences could be dealt to any of them.
    length = (shape.taken + shape.warm_up) * shape.batch * shape.seq_len
    text = np.random.default_rng(0).choice(LETTERS, length).tobytes().decode()
    whole, parts = folder / "whole.txt", folder / "parts.jsonl"
    whole.write_text(text)
    size = max(2, shape.seq_len // 3)
    pieces = (text[at : at + size].strip() or "e" for at in range(0, length, size))
    parts.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    return whole, parts
