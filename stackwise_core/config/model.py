"""The tables of the TOML, as attrs classes. Their help texts are the configuration reference."""

import os
from itertools import pairwise
from typing import Any, Literal

from attrs import evolve, frozen

from stackwise_core.interfaces.budget import Budget
from stackwise_core.options import (
    LONGEST_NAME,
    ByteSize,
    above,
    at_least,
    between,
    counted,
    not_empty,
    option,
    path_text,
)


@frozen
class Choice:
    """A table whose ``use`` picks an implementation of a hook; its other keys are that implementation's options."""

    use: str
    """The name as written: ``"disk"``, or ``"distribution:disk"`` where two distributions have one of that name."""
    options: Any
    """An instance of the implementation's own options class; a dict, as in the file, where that isn't needed."""


TEXT = ("files", "path")
"""The implementation of ``corpus``, and its option, that a text such as ``"books/*.txt"`` alone is short for."""
LONGEST_RUN_NAME = LONGEST_NAME - 15
"""Bytes of ``run.name``: a later run of the name gets a number, as in ``first-2``."""


def _plain_name(instance: Any, attribute: Any, value: str) -> None:
    if not value or value.startswith(".") or "/" in value or "\\" in value or "\0" in value:
        raise ValueError('expected a plain name without slashes, such as "first"')
    if len(os.fsencode(value)) > LONGEST_RUN_NAME:
        raise ValueError(f"expected at most {LONGEST_RUN_NAME} bytes, which file systems take with a number behind it")


@frozen
class RunConfig:
    """The run's name, seed, device and directory."""

    name: str = option("run", "Name of the run's directory.", check=_plain_name)
    seed: int = option(0, "Seed of the weights, the order of samples, and every mask.", check=between(0, 2**63 - 1))
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", '"auto" takes a CUDA device where there is one, and the CPU otherwise.'
    )
    threads: int | None = option(
        None,
        "Threads that torch computes with on the CPU. Left out: OMP_NUM_THREADS, or one thread for each core that the "
        "run may use, by its affinity and its container's quota. The last bits of a sum can depend on it.",
        check=between(1, 4096),
    )
    compile: bool | Literal["auto"] = option(
        "auto",
        "Whether transformer blocks are compiled by torch.compile, once for each shape. auto: where the run is long "
        "enough to repay it, by the plan, and a compiler is there. Precisions and adapters that don't support it are "
        "left as they are.",
    )
    directory: str = option("runs", "Directory that holds the runs.", check=path_text)
    plugins: tuple[str, ...] = option((), "Python files with hooks of your own, relative to the TOML.", path=())
    log_every: int = option(10, "Optimizer steps between two lines of metrics.jsonl.", check=at_least(1))


def _a_share(instance: Any, attribute: Any, value: float | None) -> None:
    if value is not None:
        between(0.0, 0.5)(instance, attribute, value)


@frozen
class SourceConfig:
    """One of several texts to train on."""

    corpus: Choice = option(help="As data.corpus.", hook="corpus", alone=TEXT)
    weight: float = option(
        1.0,
        "Passes over its training sequences in an epoch. 2: two passes, each with samples of its own; 0.5: one pass "
        "over half of its passages, chosen by a hash.",
        check=between(0.001, 1000),
    )
    text_field: str | None = option(None, "As data.text_field, which is the default.", check=not_empty)


def _ids(instance: Any, attribute: Any, value: dict[str, int]) -> None:
    if not all(0 <= id_ < 1 << 31 for id_ in value.values()):
        raise ValueError("expected ids of 0 or more by name, such as { mask = 256, pad = 257 }")
    if "mask" in value and value["mask"] == value.get("pad"):
        raise ValueError(f"expected another id for pad than for mask, found {value['mask']} for both")


@frozen
class DataConfig:
    """The text, its tokenizer, and the length of sequences."""

    corpus: Choice | None = option(
        None,
        'The text. A path alone is short for { use = "files", path = "..." }; see the option path of files. Another '
        'use has other options. Left out: "python-docs", unless there are sources.',
        hook="corpus",
        alone=TEXT,
    )
    sources: dict[str, SourceConfig] = option(
        dict, "Several texts in place of corpus, each in a table of its own, such as [data.sources.wiki]."
    )
    tokenizer: str = option(
        "bytes",
        '"bytes" (one token a byte), or the path of a tokenizer.json, relative to the TOML.',
        check=path_text,
        path=("bytes",),
    )
    seq_len: int = option(256, "Tokens a sequence.", check=counted(2, 10_000_000))
    validation: Choice | None = option(
        None,
        "The text to validate on, written as data.corpus; of a data set with splits, its validation split. Left out: "
        "the validation split of data.corpus, if it has one and validation_fraction isn't set; else a share of the "
        "text.",
        hook="corpus",
        alone=TEXT,
    )
    validation_fraction: float | None = option(
        None,
        "Share of the tokens that is held out from training, for validation. Left out: 0.1; or none, if validation "
        "names a text or the data set has a validation split of its own.",
        check=_a_share,
    )
    text_field: str = option(
        "text",
        "Field of a record, such as a .jsonl line, or column of a .parquet or a saved data set, that holds the text.",
        check=not_empty,
    )
    mask_token: str | None = option(
        None,
        "Token of the tokenizer.json to mask with. Left out: [MASK], <mask> or <|mask|>; if there is none of them, the "
        "vocabulary grows by one.",
    )
    special_ids: dict[str, int] = option(
        dict,
        "More special ids (never masked, attended to or scored) than the tokenizer.json marks, each under a name. mask "
        "and pad are the ids to mask and to pad with; they need no token in the file. Left out: those of init_from.",
        check=_ids,
    )
    workers: int = option(
        1,
        "Threads that draw batches ahead of the steps that train on them. 0: each step draws its own. The bits are the "
        "same with any number.",
        check=between(0, 64),
    )
    tokens_directory: str = option(
        "runs/.tokens", "Where tokenised corpora are kept, named by their content's hash.", check=path_text
    )

    @property
    def share_held_out(self) -> float:
        """``validation_fraction``, or its default where it was left out."""
        if self.validation_fraction is not None:
            return self.validation_fraction
        return 0.0 if self.validation is not None else 0.1


def _divides_d_model(instance: "RackConfig", attribute: Any, value: int) -> None:
    at_least(1)(instance, attribute, value)
    if instance.d_model % value or (instance.d_model // value) % 2:
        raise ValueError(f"expected a divisor of d_model = {instance.d_model} that leaves heads of an even width")


def _divides_n_heads(instance: "RackConfig", attribute: Any, value: int | None) -> None:
    at_least(1)(instance, attribute, value)
    if value is not None and instance.n_heads % value:
        raise ValueError(f"expected a divisor of n_heads = {instance.n_heads}")


def _only_with_a_source(instance: "RackConfig", attribute: Any, value: str) -> None:
    if value != "all" and instance.init_from is None:
        raise ValueError("says what is taken of init_from, and there is none: set init_from, or leave init out")


STACKS = 4
"""Stacks of a rack that doesn't say how many it has."""
MOST_STACKS = 10_000


def _blocks_of_stacks(instance: "RackConfig", attribute: Any, value: int | tuple[int, ...] | str) -> None:
    for blocks in value if isinstance(value, tuple) else (value,) if isinstance(value, int) else ():
        counted(1, 10_000)(instance, attribute, blocks)
    if isinstance(value, tuple) and not 0 < len(value) <= MOST_STACKS:
        raise ValueError(f"expected numbers for 1 to {MOST_STACKS} stacks")
    if isinstance(value, tuple) and instance.stacks not in (None, len(value)):
        raise ValueError("expected a number for each stack, and as many as stacks says")
    if value == "auto" and instance.stacks is not None:
        raise ValueError('"auto" decides how many stacks there are: leave stacks out, and set blocks')


def _blocks_to_divide(instance: "RackConfig", attribute: Any, value: int | None) -> None:
    counted(1, MOST_STACKS)(instance, attribute, value)
    divided = instance.blocks_per_stack == "auto"
    if value is not None and not divided:
        raise ValueError('says what blocks_per_stack = "auto" divides: set that, or leave blocks out')
    if value is None and divided and instance.init_from is None:
        raise ValueError('blocks_per_stack = "auto" needs the number of blocks to divide')


@frozen
class RackConfig:
    """The model: embedding, stacks of blocks, exit norms, LM head."""

    stacks: int | None = option(
        None,
        "How many stacks. Left out: as many as blocks_per_stack lists, or 4.",
        check=counted(1, MOST_STACKS),
    )
    blocks_per_stack: int | tuple[int, ...] | Literal["auto"] = option(
        2,
        'Transformer blocks a stack: a number; a list, from the tokens upwards; or "auto": blocks are divided into '
        "stacks so that training is fastest, by the plan, of all that the memory budget holds.",
        check=_blocks_of_stacks,
    )
    blocks: int | None = option(
        None,
        'Transformer blocks of the whole rack, with blocks_per_stack = "auto". Left out: as many as init_from has.',
        check=_blocks_to_divide,
    )
    d_model: int = option(256, "Width of the residual stream.", check=counted(2, 10_000_000))
    n_heads: int = option(8, "Attention heads.", check=_divides_d_model)
    n_kv_heads: int | None = option(
        None, "Key and value heads, for grouped-query attention. None: n_heads.", check=_divides_n_heads
    )
    d_ff: int | None = option(
        None, "Width of the SwiGLU layer. None: 8/3 of d_model, up to a multiple of 64.", check=counted(1, 100_000_000)
    )
    attention: Literal["bidirectional", "causal"] = option("bidirectional", "Whether a token sees the tokens after it.")
    tie_embeddings: bool = option(True, "Whether the LM head is the transposed embedding.")
    rope_theta: float = option(10_000.0, "Base of the rotary position angles.", check=above(0))
    norm_eps: float = option(1e-5, "Added to the mean square in RMSNorm.", check=above(0))
    init_std: float = option(
        0.02,
        "Standard deviation of new weights; projections into the residual stream get 1/sqrt(2 x blocks) of it.",
        check=above(0),
    )
    vocab_size: int | None = option(
        None,
        "Rows of embedding and head, if there should be more than the tokenizer has ids (mask and padding included). "
        "Left out: as many as ids, or as init_from has.",
        check=at_least(1),
    )
    init_from: str | None = option(
        None,
        "Directory of the source: a run, or a checkpoint in an installed format such as Hugging Face's. Relative to "
        "the TOML. Stacks beyond the source's are new. Widths that you leave out are the source's. Widths that you "
        "set, and the tokenizer, must equal the source's.",
        check=path_text,
        path=(),
    )
    init: Literal["all", "embedding"] = option(
        "all",
        "Part of the source to start from: all, or its token embedding alone, which is also the LM head if that is "
        "tied. Then only d_model and the tokenizer must equal the source's.",
        check=_only_with_a_source,
    )

    def __attrs_post_init__(self) -> None:
        if self.stacks is None and self.blocks_per_stack != "auto":
            sizes = self.blocks_per_stack
            count = len(sizes) if isinstance(sizes, tuple) else STACKS
            object.__setattr__(self, "stacks", count if 0 < count <= MOST_STACKS else None)

    def divided(self, blocks: tuple[int, ...]) -> "RackConfig":
        """Return the same with stacks of these numbers of blocks."""
        return evolve(self, stacks=len(blocks), blocks_per_stack=blocks, blocks=None)

    @property
    def stack_blocks(self) -> tuple[int, ...]:
        """Number of blocks of each stack; none where they aren't divided into stacks yet."""
        sizes = self.blocks_per_stack
        if isinstance(sizes, int):
            return (sizes,) * (self.stacks or 0)
        return sizes if isinstance(sizes, tuple) else ()


def _multipliers(instance: Any, attribute: Any, value: dict[int, float]) -> None:
    if not all(stack >= 0 and factor >= 0 for stack, factor in value.items()):
        raise ValueError("expected factors of 0 or more by stack, such as { 0 = 0.5, 3 = 2 }")


def _fractions_rise(instance: Any, attribute: Any, value: tuple[float, ...] | dict[int, float]) -> None:
    fractions = [value[step] for step in sorted(value)] if isinstance(value, dict) else list(value)
    if not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError("expected mask fractions above 0 and up to 1")
    if any(later < earlier for earlier, later in pairwise(fractions)):
        raise ValueError("expected mask fractions that don't fall from step to step")


@frozen
class TrainingConfig:
    """Budget, learning rates, masks, time and memory of training."""

    epochs_per_stack: int = option(1, "Passes over the training split, a stack.", check=counted(1, 1_000_000))
    steps_per_stack: int | None = option(
        None, "Optimizer steps a stack, in place of epochs_per_stack.", check=counted(1, 1_000_000_000)
    )
    batch_size: int = option(
        16,
        "Sequences a forward pass. If the training split has fewer, all of them; the plan says so.",
        check=counted(1, 10_000_000),
    )
    gradient_accumulation: int = option(1, "Forward passes an optimizer step.", check=counted(1, 1_000_000))
    block_lr: float = option(1e-3, "Peak learning rate of the stacks.", check=at_least(0))
    stack_lr_multipliers: dict[int, float] = option(
        dict,
        "Factors of block_lr and adapter_lr by stack, such as { 0 = 0.5, 3 = 2 }; 1 for the others.",
        check=_multipliers,
    )
    embedding_lr: float = option(
        1e-3, "Peak learning rate of the token embedding and of the time embedding.", check=at_least(0)
    )
    head_lr: float = option(1e-3, "Peak learning rate of an untied LM head.", check=at_least(0))
    adapter_lr: float = option(1e-4, "Peak learning rate of adapters.", check=at_least(0))
    lr_schedule: Literal["wsd", "cosine", "linear", "constant"] = option(
        "wsd",
        "Learning rate after the warm-up, of each phase or of the run (course). wsd: constant, then a linear decay. "
        "cosine, linear: a decay right away. constant: no decay.",
    )
    warmup: float = option(0.05, "Share of the steps in which the learning rate rises.", check=between(0, 1))
    decay: float = option(0.3, "Share of the steps in which wsd decays.", check=between(0, 1))
    final_lr: float = option(0.1, "Learning rate at the end, as a share of its peak.", check=between(0, 1))
    weight_decay: float = option(0.1, "Decoupled weight decay, on matrices only.", check=at_least(0))
    max_grad_norm: float = option(
        1.0,
        "Largest norm of a step's gradient; a larger gradient is scaled down. 0: no clipping.",
        check=at_least(0),
    )
    clip: Literal["all", "stack"] = option(
        "all",
        "Gradients whose norm max_grad_norm bounds. all: of everything that trains, together. stack: of each stack, "
        "and of embedding and head; a streamed step then moves a stack's weights as soon as its gradient is there, and "
        "reads and writes less.",
    )
    head: Literal["frozen", "trains"] = option(
        "frozen",
        "Training of an untied LM head after the first phase. frozen: all stacks are read out through the same head. "
        "trains: it trains in every phase.",
    )
    over: Literal["time", "depth", "both"] | None = option(
        None,
        "Meaning of the mask schedule's progress. time: random for each draw. depth: the stack's place, so that a "
        "phase has one mask fraction. both: random within the stack's own slice. Left out: depth with "
        'time = "depth", else time.',
    )
    noise_index: Literal["build", "position"] = option(
        "build",
        "Stack at the beginning of a schedule over depth. build: the stack built first. position: the stack at the "
        "tokens.",
    )
    time: Literal["none", "input", "depth"] = option(
        "none",
        "none: the network doesn't get the mask fraction. input: its embedding is added to every token's. depth: the "
        "stack's place is the time, so the mask schedule runs over depth.",
    )
    time_encoding: Literal["sinusoidal", "learned"] = option(
        "sinusoidal",
        'Embedding of a mask fraction, with time = "input": sinusoidal features through a learned projection, or a '
        "learned vector for each time step.",
    )
    time_steps: int | None = option(
        None,
        "Number of discrete time steps in the schedule's progress. Left out: time is continuous.",
        check=counted(1, 1_000_000),
    )
    time_step_fractions: tuple[float, ...] | dict[int, float] = option(
        (),
        "Mask fractions of the time steps: a list of all of them, or a table such as { 0 = 0.15, 7 = 0.9 } with gaps "
        "filled by linear interpolation. Left out: the mask schedule at the end of each step.",
        check=_fractions_rise,
    )
    weighting: Literal["nelbo", "mean"] | None = option(
        None,
        "nelbo: a draw has the weight |f'(s)|/f(s), so the loss is a bound on the likelihood. mean: the average over "
        "the masked tokens. Left out: nelbo if the objective has it and the phase has a band of mask fractions, else "
        "mean.",
    )
    masks: Literal["fixed", "resampled"] = option(
        "fixed",
        "fixed: masks_per_sample draws of each sample, in turn. resampled: a new draw each epoch.",
    )
    masks_per_sample: int = option(
        4, "Fixed draws of each sample. With 1 a stack overfits to its masks.", check=counted(1, 1_000_000)
    )
    activation_checkpointing: bool = option(
        False,
        "Whether a step through several stacks keeps only the hidden states between them, and computes the rest again "
        "in the backward pass: less memory, a third more operations, the same losses.",
    )
    max_bad_steps: int = option(
        10,
        "Most steps in a row that are skipped because their loss or gradient isn't finite. One more stops the run at "
        "its last checkpoint.",
        check=at_least(0),
    )
    patience: int | None = option(
        None,
        "End a phase early after this many validations in a row without a better loss. evaluation.every sets the "
        "interval. Left out: every phase uses its whole budget.",
        check=at_least(1),
    )
    window: int | None = option(
        None,
        "Sequences that are shuffled together and pass through the trunk together. Without a cache, their boundaries "
        "stay in memory until the next window. Left out: 1024, halved until the boundaries take at most a quarter of "
        "memory_budget.",
        check=at_least(1),
    )
    chunk_tokens: int | None = option(
        None,
        "Tokens that pass through the trunk at once: whole sequences, at least one. A part of a boundary's name and of "
        "the order of samples, since a window has whole chunks. Left out: 4096 on a CPU; on a GPU 65,536, halved until "
        "it divides the window and its activations take at most 4 GiB.",
        check=at_least(1),
    )
    boundaries: Literal["auto", "cache", "recompute"] = option(
        "auto",
        "Place of boundaries that a cache_backend could keep. cache: there. recompute: they are computed anew for each "
        "window. auto: recompute in phases where that is faster, clearly and by a second at least, by the measured "
        'rates of backend and device; never with keep = "rack" or a directory of their own. The bits are the same.',
    )
    memory_budget: ByteSize | None = option(
        None,
        'Largest planned memory, such as "8 GB"; a larger plan is refused. The plan is an estimate, good to some '
        "15 %. Left out: the free memory when the run begins, less a tenth, and nothing is refused.",
    )
    residency: Literal["auto", "memory", "stream"] = option(
        "auto",
        "Place of stacks while a phase runs. memory: all of them are in memory. stream: one at a time is, frozen or "
        "training; memory doesn't grow with depth, and the gradient is the same to the bit. auto: the trunk is "
        "streamed if a window has enough tokens to hide the reading, or if it exceeds memory_budget; stacks that train "
        "are streamed if they exceed memory_budget.",
    )
    course: Literal["phase", "run"] = option(
        "phase",
        "Extent of a learning-rate schedule. phase: each phase has warm-up and decay of its own, and new moments. run: "
        "one schedule over all phases, with warm-up at its beginning and decay at its end; what trains again keeps its "
        "moments, and a copied stack has copies of them.",
    )
    offload: Literal["auto", "memory", "disk"] = option(
        "auto",
        "Place of weights, moments, gradients and boundaries of training stacks that aren't at work, while they are "
        "streamed. memory: host memory. disk: files in the run's directory. auto: host memory if a GPU computes and it "
        "has room for them, else disk.",
    )
    boundary_dtype: Literal["fp32", "bf16"] = option(
        "fp32",
        "Number format of the boundaries between streamed stacks. fp32: the gradient is exact. bf16: half the bytes, "
        "and every stack sees its input rounded.",
    )

    @property
    def noise_over(self) -> Literal["time", "depth", "both"]:
        """Meaning of the schedule's progress: ``over``, or its default where it was left out."""
        return self.over or ("depth" if self.time == "depth" else "time")

    @property
    def budget(self) -> Budget:
        """The part of this table that a trainer mode plans with."""
        return Budget(
            epochs_per_stack=self.epochs_per_stack,
            steps_per_stack=self.steps_per_stack,
            masks=self.masks,
            masks_per_sample=self.masks_per_sample,
            head=self.head,
            over=self.noise_over,
            over_is_set_by="over" if self.over else "time",
            noise_index=self.noise_index,
        )


@frozen
class CheckpointConfig:
    """Intervals between checkpoints, and which weights are kept."""

    minutes: float = option(
        10.0,
        "Minutes between two checkpoints within a phase. The end of a phase is always a checkpoint.",
        check=above(0),
    )
    steps: int | None = option(
        None,
        "Optimizer steps between two checkpoints within a phase. Left out: minutes alone decide.",
        check=at_least(1),
    )
    save_stacks: bool = option(
        True,
        "Whether the stacks, embedding and head are kept when the run ends. false: they are deleted after the "
        "evaluation, for runs of which only the metrics count.",
    )
    save_rack: bool = option(
        False,
        "Whether the whole rack is also written into one file after each phase, racks/NNN.safetensors.",
    )


@frozen
class EvaluationConfig:
    """The estimate of the validation NELBO."""

    draws: int = option(4, "Masks a validation sequence.", check=counted(1, 100_000))
    sequences: int | None = option(None, "Validation sequences to use. None: all of them.", check=at_least(2))
    bands: int = option(
        4,
        "Equal intervals of the mask fraction for which the NELBO is also reported. A banded rack has its own.",
        check=counted(1, 1000),
    )
    every: int | None = option(
        None,
        "Optimizer steps between two validations of a phase's own loss, with the same masks each time. Left out: no "
        "validation.",
        check=at_least(1),
    )


@frozen
class PrecisionConfig:
    """Number formats in which stacks are held and computed."""

    active: Choice = option(lambda: {"use": "fp32"}, "Precision of the stacks that train.", hook="precision")
    trunk: Choice | None = option(None, "Precision of the frozen stacks. Left out: as active.", hook="precision")
    stacks: dict[int, Choice] = option(
        dict,
        'Precision of single stacks when they are frozen, such as { 0 = "bf16", 3 = "nf4" }. The others have trunk.',
        hook="precision",
    )


@frozen
class AdapterConfig:
    """Small trainable weights beside those of frozen stacks; docs/adapters.md says when each of them trains."""

    stack: Choice | None = option(
        None, "Adapter of every stack, put on it as it is built (stack LoRA). Left out: none.", hook="adapter"
    )
    trunk: Choice | None = option(
        None,
        "Adapter of the frozen stacks in phases that train adapters of the trunk (progressive QLoRA). Left out: the "
        "adapters of stack train there.",
        hook="adapter",
    )
    attach: Literal["freeze", "birth"] = option(
        "freeze",
        "Time at which a stack gets its own adapter. freeze: after its full weights have trained, at the trunk's "
        "precision. birth: at once; adapter and weights train together.",
    )
    share: float = option(
        0.2,
        'Share of a stack\'s budget in which its adapter trains over the frozen weights, with attach = "freeze".',
        check=between(0.001, 0.999),
    )
    active: Literal["full", "adapters"] = option(
        "full",
        "Training of a new stack that has weights (a copy, or the source's). full: all its weights. adapters: its "
        "adapter only, over frozen weights at the trunk's precision.",
    )
    growth: Literal["continue", "merge"] = option(
        "continue",
        "The trunk's adapters when another stack joins. continue: they keep training. merge: they are merged into the "
        "full-precision masters, and new ones begin.",
    )


@frozen
class Config:
    """A whole configuration. Some of its tables choose an implementation of a hook."""

    run: RunConfig = option(dict, "")
    data: DataConfig = option(dict, "")
    rack: RackConfig = option(dict, "")
    training: TrainingConfig = option(dict, "")
    checkpoint: CheckpointConfig = option(dict, "")
    evaluation: EvaluationConfig = option(dict, "")
    mask_schedule: Choice = option(lambda: {"use": "linear"}, "Mask fraction by progress.", hook="mask_schedule")
    precision: PrecisionConfig = option(dict, "")
    adapter: AdapterConfig = option(dict, "")
    cache_backend: Choice | None = option(
        None,
        "Store of boundaries. Left out: they are computed again for each window.",
        hook="cache_backend",
    )
    trainer_mode: Choice = option(
        lambda: {"use": "blockwise"}, "The phases in which the rack is trained.", hook="trainer_mode"
    )
    optimizer: Choice = option(
        lambda: {"use": "adamw"}, "The rule by which gradients change what trains.", hook="optimizer"
    )
    objective: Choice = option(
        lambda: {"use": "mask_diffusion"}, "The tokens that are predicted, and their loss.", hook="objective"
    )
    tracker: dict[str, Choice] = option(
        dict,
        "Receivers of the measurements beside metrics.jsonl, each under a name of your own, such as "
        '{ board = "tensorboard" }.',
        hook="tracker",
    )
