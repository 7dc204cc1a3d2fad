"""The tables of the TOML, as attrs classes. Their help texts are the configuration reference."""

import os
from itertools import pairwise
from typing import Any, Literal

from attrs import frozen

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
        "Threads that torch computes with on the processor. Left out: what OMP_NUM_THREADS says, or a thread a core "
        "that the run may use, by its affinity and its container's quota. The last bits of a sum can depend on it.",
        check=between(1, 4096),
    )
    directory: str = option("runs", "Directory that holds the runs.", check=path_text)
    plugins: tuple[str, ...] = option((), "Python files with hooks of your own, relative to the TOML.", path=())
    log_every: int = option(10, "Optimizer steps between two lines of metrics.jsonl.", check=at_least(1))


def _a_share(instance: Any, attribute: Any, value: float | None) -> None:
    if value is not None:
        between(0.0, 0.5)(instance, attribute, value)


@frozen
class SourceConfig:
    """One of several texts that are trained on."""

    corpus: Choice = option(help="As data.corpus.", hook="corpus", alone=TEXT)
    weight: float = option(
        1.0,
        "How many times an epoch passes over its training sequences. 2: twice, each time as samples of their own; "
        "0.5: over half of its passages, chosen by a hash.",
        check=between(0.001, 1000),
    )
    text_field: str | None = option(None, "As data.text_field, which is taken where it is left out.", check=not_empty)


def _ids(instance: Any, attribute: Any, value: dict[str, int]) -> None:
    if not all(0 <= id_ < 1 << 31 for id_ in value.values()):
        raise ValueError("expected ids of 0 or more by name, such as { mask = 256, pad = 257 }")
    if "mask" in value and value["mask"] == value.get("pad"):
        raise ValueError(f"expected another id for pad than for mask, found {value['mask']} for both")


@frozen
class DataConfig:
    """The text, how it becomes tokens, and how long a sequence is."""

    corpus: Choice | None = option(
        None,
        'The text. A path alone is short for { use = "files", path = "..." }, whose path says what it may be; another '
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
        "The validation split, as data.corpus names a text; of a data set with splits its own validation. Left out: "
        "that of data.corpus, where it is such a data set and validation_fraction isn't set, or else a share of the "
        "text.",
        hook="corpus",
        alone=TEXT,
    )
    validation_fraction: float | None = option(
        None,
        "Share of the tokens that is kept from training and measured on. Left out: 0.1, or none where validation "
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
        "Token of the tokenizer.json to mask with. Without it [MASK], <mask> or <|mask|> is taken, and where there is "
        "none the vocabulary grows by one.",
    )
    special_ids: dict[str, int] = option(
        dict,
        "Ids that are special (never masked, attended to or scored) beside those that the tokenizer.json calls so, by "
        "a name for each: mask and pad are the ones to mask and to pad with, which need no token there. Left out, they "
        "are those of init_from.",
        check=_ids,
    )
    tokens_directory: str = option(
        "runs/.tokens", "Where tokenised corpora are kept, named by their content's hash.", check=path_text
    )

    @property
    def share_held_out(self) -> float:
        """``validation_fraction``, or what it is where it was left out."""
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


@frozen
class RackConfig:
    """The model: embedding, stacks of blocks, exit norms, LM head."""

    stacks: int = option(4, "How many stacks.", check=counted(1, 10_000))
    blocks_per_stack: int = option(2, "Transformer blocks a stack.", check=counted(1, 10_000))
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
        "Rows of embedding and head, where they are to be more than the tokenizer has ids, mask and padding counted. "
        "Left out, they are as many, or as init_from has.",
        check=at_least(1),
    )
    init_from: str | None = option(
        None,
        "Directory that this rack starts from, relative to the TOML: of a run, or of a checkpoint in a format that is "
        "installed, such as Hugging Face's. Stacks beyond its own are new. Widths that are left out here are its; "
        "those that are set must be, and so must the tokenizer.",
        check=path_text,
        path=(),
    )
    init: Literal["all", "embedding"] = option(
        "all",
        "What is taken of init_from: all of it, or its token embedding alone, which is also the LM head where that is "
        "tied; only d_model and the tokenizer must then be its.",
        check=_only_with_a_source,
    )


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
    """Budget, learning rates, and what the masks mean."""

    epochs_per_stack: int = option(1, "Passes over the training split, a stack.", check=counted(1, 1_000_000))
    steps_per_stack: int | None = option(
        None, "Optimizer steps a stack, in place of epochs_per_stack.", check=counted(1, 1_000_000_000)
    )
    batch_size: int = option(
        16,
        "Sequences a forward pass. Where the training split has fewer, all of them: the plan says so.",
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
        "Course of the learning rate in each phase after its warm-up: wsd holds it and then decays linearly, cosine "
        "and linear decay at once, constant holds it.",
    )
    warmup: float = option(0.05, "Share of a phase's steps in which the learning rate rises.", check=between(0, 1))
    decay: float = option(0.3, "Share of a phase's steps in which wsd decays.", check=between(0, 1))
    final_lr: float = option(0.1, "Learning rate at the end, as a share of its peak.", check=between(0, 1))
    weight_decay: float = option(0.1, "Decoupled weight decay, on matrices only.", check=at_least(0))
    max_grad_norm: float = option(
        1.0,
        "Largest norm of a step's gradient; a larger one is scaled down. 0: no clipping.",
        check=at_least(0),
    )
    head: Literal["frozen", "trains"] = option(
        "frozen",
        "Whether an untied LM head goes on training after the first phase, or stays as the anchor that all stacks "
        "are read out through.",
    )
    over: Literal["time", "depth", "both"] | None = option(
        None,
        "What the mask schedule runs over: time draws its progress anew for each draw; depth takes it from the "
        'stack\'s place, one fraction a phase; both gives each stack its own slice and draws within. Left out: "depth" '
        'with time = "depth", else "time".',
    )
    noise_index: Literal["build", "position"] = option(
        "build",
        "Over depth, which stack has the schedule's beginning: the one that is built first, or the one at the tokens.",
    )
    time: Literal["none", "input", "depth"] = option(
        "none",
        "none: the network isn't told the mask fraction; input adds its embedding to every token's; depth makes the "
        "stack's place the time, so that the mask schedule runs over depth.",
    )
    time_encoding: Literal["sinusoidal", "learned"] = option(
        "sinusoidal",
        'How time = "input" embeds a mask fraction: sinusoidal features through a learned projection, or a learned '
        "vector a time step.",
    )
    time_steps: int | None = option(
        None,
        "Discrete time steps that the schedule's progress is cut into. Left out: time is continuous.",
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
        "nelbo weighs a draw by |f'(s)|/f(s), which makes the loss a bound on the likelihood; mean averages over the "
        "masked tokens. Left out: nelbo where the objective has it and the phase a band of mask fractions, else mean.",
    )
    masks: Literal["fixed", "resampled"] = option(
        "fixed",
        "fixed cycles through masks_per_sample draws of each sample; resampled takes a new draw each epoch.",
    )
    masks_per_sample: int = option(
        4, "How many fixed draws each sample has. With 1 a stack overfits to its masks.", check=counted(1, 1_000_000)
    )
    activation_checkpointing: bool = option(
        False,
        "Whether a step that runs several stacks keeps only what passes between them, and computes the rest again on "
        "its way back: less memory, a third more operations, the same losses.",
    )
    max_bad_steps: int = option(
        10,
        "Steps in a row that are left out because their loss or gradient isn't a finite number; one more stops the "
        "run at its last checkpoint.",
        check=at_least(0),
    )
    patience: int | None = option(
        None,
        "End a phase early after this many validations in a row without a better loss; evaluation.every says how "
        "often. Left out: every phase has its whole budget.",
        check=at_least(1),
    )
    window: int | None = option(
        None,
        "Sequences that are shuffled together, and that pass the trunk together; where there is no cache, their "
        "boundaries are held until the next. Left out: 1024, or the largest half, quarter and so on of it whose "
        "boundaries take at most a quarter of memory_budget.",
        check=at_least(1),
    )
    memory_budget: ByteSize | None = option(
        None,
        'Most memory that the plan may come to, such as "8 GB"; more is refused. The plan is an estimate, good to some '
        "15 %. Left out: what is free when the run begins, less a tenth, and nothing is refused.",
    )
    trunk_residency: Literal["auto", "memory", "stream"] = option(
        "auto",
        "Where the trunk is while a stack trains on its boundary. memory: all of it in memory. stream: one stack is, "
        "while a window passes it, and memory doesn't grow with depth. auto: stream, where a window has tokens enough "
        "for the reading not to count, or where memory_budget doesn't hold the trunk.",
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
        10.0, "Minutes between two checkpoints within a phase. Each phase's end is one in any case.", check=above(0)
    )
    steps: int | None = option(
        None,
        "Optimizer steps between two checkpoints within a phase. Left out: minutes alone decide.",
        check=at_least(1),
    )
    save_stacks: bool = option(
        True,
        "Whether the stacks, embedding and head are kept when the run ends. false: for runs of which the metrics "
        "count; they are deleted once the run is evaluated.",
    )
    save_rack: bool = option(
        False,
        "Whether each phase also writes the whole rack as it is then into one file, racks/NNN.safetensors.",
    )


@frozen
class EvaluationConfig:
    """The estimate of the validation NELBO."""

    draws: int = option(4, "Masks a validation sequence.", check=counted(1, 100_000))
    sequences: int | None = option(None, "Validation sequences to use. None: all of them.", check=at_least(2))
    bands: int = option(
        4,
        "Equal intervals of the mask fraction that the NELBO is also given for. A banded rack has its own.",
        check=counted(1, 1000),
    )
    every: int | None = option(
        None,
        "Optimizer steps between two validations of a phase's own loss, under the same masks each time. Left out: "
        "none.",
        check=at_least(1),
    )


@frozen
class PrecisionConfig:
    """Number formats in which stacks are held and computed."""

    active: Choice = option(lambda: {"use": "fp32"}, "Of the stacks that train.", hook="precision")
    trunk: Choice | None = option(None, "Of the frozen stacks. Left out: as active.", hook="precision")
    stacks: dict[int, Choice] = option(
        dict,
        'Of single stacks when they are frozen, such as { 0 = "bf16", 3 = "nf4" }; trunk for the others.',
        hook="precision",
    )


@frozen
class AdapterConfig:
    """Small trainable weights beside those of frozen stacks; docs/adapters.md says when each of them trains."""

    stack: Choice | None = option(None, "On every stack as it is built (stack LoRA). Left out: none.", hook="adapter")
    trunk: Choice | None = option(
        None,
        "On the frozen stacks of a phase that trains their adapters (progressive QLoRA). Left out: those of stack go "
        "on training there.",
        hook="adapter",
    )
    attach: Literal["freeze", "birth"] = option(
        "freeze",
        "When a stack gets its own adapter: freeze, when its full weights are done and at the trunk's precision; "
        "birth, with its weights, beside which it trains.",
    )
    share: float = option(
        0.2,
        'With attach = "freeze", the share of a stack\'s budget in which its adapter trains over the frozen weights.',
        check=between(0.001, 0.999),
    )
    active: Literal["full", "adapters"] = option(
        "full",
        "What trains of a stack that joins with weights (a copy, or init_from's): all of them, or its adapter only, "
        "over frozen ones at the trunk's precision.",
    )
    growth: Literal["continue", "merge"] = option(
        "continue",
        "What becomes of the trunk's adapters when another stack joins: they go on training, or they are merged into "
        "the full-precision masters and begin afresh.",
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
        "Where boundaries are kept. Left out: they are computed anew for each window.",
        hook="cache_backend",
    )
    trainer_mode: Choice = option(
        lambda: {"use": "blockwise"}, "Which phases the rack is trained in.", hook="trainer_mode"
    )
    optimizer: Choice = option(
        lambda: {"use": "adamw"}, "The rule by which gradients change what trains.", hook="optimizer"
    )
    objective: Choice = option(
        lambda: {"use": "mask_diffusion"}, "Which tokens are predicted, and their loss.", hook="objective"
    )
    tracker: dict[str, Choice] = option(
        dict,
        "Who is told of the measurements beside metrics.jsonl, each under a name of your own, such as "
        '{ board = "tensorboard" }.',
        hook="tracker",
    )
