"""Checks that need several tables, or several keys none of which is to blame alone."""

from collections.abc import Callable, Iterable, Iterator

import attrs

from stackwise_core.config.dump import plain_choice
from stackwise_core.config.model import TEXT, AdapterConfig, Config, TrainingConfig
from stackwise_core.registry.blocking import normalised
from stackwise_core.words import either, shown

Check = Callable[[Config], str | None]
Misfit = tuple[tuple[str, ...], str]
_CHECKS: list[Callable[[Config], Iterable[Misfit]]] = []


def cross_checks(config: Config) -> Iterator[Misfit]:
    """Yield the keys that don't fit together, the likeliest culprit first, and why.

    Args:
        config: may lack attributes, where tables of it were refused; what needs those isn't checked.
    """
    for check in _CHECKS:
        try:
            misfits = list(check(config))
        except AttributeError:
            continue
        yield from misfits


def _cross_check(*keys: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        def misfits(config: Config) -> Iterator[Misfit]:
            if message := check(config):
                yield keys, message

        _CHECKS.append(misfits)
        return check

    return register


@_cross_check("training.window", "training.batch_size", "training.gradient_accumulation")
def _a_step_fits_its_window(config: Config) -> str | None:
    training = config.training
    sequences = training.batch_size * training.gradient_accumulation
    if training.window is None or training.window >= sequences:
        return None
    return f"expected at least batch_size x gradient_accumulation = {sequences}, found {training.window}"


@_cross_check("training.boundaries", "cache_backend")
def _a_cache_is_there_to_be_used(config: Config) -> str | None:
    if config.training.boundaries != "cache" or config.cache_backend is not None:
        return None
    return 'boundaries = "cache" needs a cache: add a table [cache_backend], such as use = "disk"'


@_cross_check("training.head", "rack.tie_embeddings")
def _a_head_that_trains_is_untied(config: Config) -> str | None:
    if config.training.head == "frozen" or not config.rack.tie_embeddings:
        return None
    return 'head = "trains" needs a head of its own: set rack.tie_embeddings = false'


@_cross_check("training.weighting", "training.over", "training.time")
def _a_bound_needs_a_band(config: Config) -> str | None:
    training = config.training
    if training.weighting != "nelbo" or training.noise_over != "depth":
        return None
    key, others = ("over", '"time" or "both"') if training.time != "depth" else ("time", '"both"')
    return (
        f'weighting = "nelbo" needs a band of mask fractions, and {key} = "depth" gives each phase a single one: '
        f"leave weighting out, or set over = {others}"
    )


@_cross_check("training.over", "training.time")
def _time_is_depth_or_drawn(config: Config) -> str | None:
    if config.training.time != "depth" or config.training.over != "time":
        return None
    return (
        'time = "depth" makes the stack\'s place the time, and over = "time" draws it anew for each draw: '
        'leave over out, or set it to "depth" or "both"'
    )


@_cross_check("training.time_encoding", "training.time")
def _only_a_time_that_is_an_input_is_encoded(config: Config) -> str | None:
    if config.training.time_encoding != "learned" or config.training.time == "input":
        return None
    return 'time_encoding = "learned" needs a network that is told the time: set time = "input", or leave it out'


@_cross_check("training.time_encoding", "training.time_steps")
def _learned_times_are_discrete(config: Config) -> str | None:
    training = config.training
    if training.time_encoding != "learned" or training.time_steps or training.time_step_fractions:
        return None
    return 'time_encoding = "learned" has a vector for each time step: set time_steps, or leave it out'


@_cross_check("training.time_step_fractions", "training.time_steps")
def _every_time_step_has_a_fraction(config: Config) -> str | None:
    fractions, steps = config.training.time_step_fractions, config.training.time_steps
    if not fractions:
        return None
    if not isinstance(fractions, dict):
        if steps in (None, len(fractions)):
            return None
        return f"expected as many mask fractions as time_steps = {steps}, found {len(fractions)}"
    if steps is None:
        return "a table of mask fractions needs time_steps, which says how many steps there are"
    outside = [step for step in fractions if not 0 <= step < steps]
    return f"expected steps from 0 to time_steps - 1 = {steps - 1}, found {outside[0]}" if outside else None


@_cross_check("training.boundary_dtype", "training.residency")
def _rounded_boundaries_are_streamed(config: Config) -> str | None:
    if config.training.boundary_dtype == "fp32" or config.training.residency == "stream":
        return None
    return (
        'boundary_dtype = "bf16" rounds what streamed stacks see, and what is streamed would depend on the memory that '
        'is free: set residency = "stream"'
    )


@_cross_check("rack.blocks_per_stack", "trainer_mode.target_stacks")
def _divided_blocks_are_all(config: Config) -> str | None:
    if config.rack.blocks_per_stack != "auto" or getattr(config.trainer_mode.options, "target_stacks", None) is None:
        return None
    return '"auto" divides all blocks of the rack, and target_stacks adds some: leave target_stacks out'


@_cross_check("training.patience", "evaluation.every")
def _patience_counts_validations(config: Config) -> str | None:
    if config.training.patience is None or config.evaluation.every is not None:
        return None
    return "patience counts validations, and a phase has none: set evaluation.every"


@_cross_check("data.validation_fraction", "evaluation.every", "training.patience")
def _validation_needs_text(config: Config) -> str | None:
    if config.data.validation is not None or config.data.share_held_out > 0:
        return None
    if config.evaluation.every is None and config.training.patience is None:
        return None
    needs = "training.patience" if config.evaluation.every is None else "evaluation.every"
    return f"expected more than 0, since {needs} needs text to validate on, found {config.data.share_held_out:g}"


@_cross_check("data.validation_fraction", "data.validation")
def _validation_is_a_text_or_a_share(config: Config) -> str | None:
    if config.data.validation is None or config.data.validation_fraction is None:
        return None
    return (
        "data.validation names the validation split, and data.validation_fraction takes it from the text that is "
        "trained on: set one of them"
    )


@_cross_check("data.corpus", "data.sources")
def _a_corpus_or_sources(config: Config) -> str | None:
    if config.data.corpus is None or not config.data.sources:
        return None
    return (
        f"data.corpus and data.sources both say what is trained on: leave corpus out, or make it a source, "
        f"[data.sources.NAME] with corpus = {shown(plain_choice(config.data.corpus, TEXT))}"
    )


@_cross_check("training.weighting", "objective.use")
def _an_objective_has_its_weightings(config: Config) -> str | None:
    objective, asked = config.objective, config.training.weighting
    if asked is None or objective.options.causal or asked in objective.options.weightings:
        return None
    because = ", and bounds no likelihood" if asked == "nelbo" else ""
    has = either([shown(weighting) for weighting in objective.options.weightings])
    return f'objective = "{objective.use}" has the weighting {has}{because}: leave weighting out, or use another one'


def _of_no_use_without_masks(key: str, *allowed: object) -> None:
    @_cross_check(f"training.{key}", "objective.use")
    def check(config: Config) -> str | None:
        if not config.objective.options.causal or getattr(config.training, key) in allowed:
            return None
        return f'objective = "{config.objective.use}" masks nothing, so that {key} says nothing: leave it out'


_of_no_use_without_masks("over", None, "time")
_of_no_use_without_masks("time", "none")
_of_no_use_without_masks("time_steps", None)
_of_no_use_without_masks("time_step_fractions", (), {})
_of_no_use_without_masks("weighting", None)
_of_no_use_without_masks("masks", "fixed")


@_cross_check("training.noise_index", "training.over", "training.time")
def _an_index_needs_depth(config: Config) -> str | None:
    if config.training.noise_index == "build" or config.training.noise_over != "time":
        return None
    return 'noise_index = "position" is for a mask schedule over depth: set over = "depth" or "both"'


@_cross_check("cache_backend.dtype", "rack.d_model")
def _int4_has_whole_groups(config: Config) -> str | None:
    if config.cache_backend is None or config.cache_backend.options.dtype != "int4" or config.rack.d_model % 32 == 0:
        return None
    return (
        'dtype = "int4" has a scale for every 32 features: expected a d_model that is a multiple of 32, found '
        f"{config.rack.d_model}; or another dtype"
    )


@_cross_check("training.decay", "training.warmup")
def _warmup_and_decay_fit_a_phase(config: Config) -> str | None:
    training = config.training
    if training.lr_schedule != "wsd" or training.warmup + training.decay <= 1:
        return None
    return f"expected warmup + decay of at most 1, found {training.warmup:g} + {training.decay:g}"


@_cross_check("data.mask_token", "data.tokenizer")
def _bytes_have_no_named_tokens(config: Config) -> str | None:
    if config.data.mask_token is None or config.data.tokenizer != "bytes":
        return None
    return 'mask_token names a token of a tokenizer.json, and tokenizer = "bytes" has none: leave mask_token out'


@_cross_check("data.special_ids", "data.tokenizer")
def _bytes_have_their_own_special_ids(config: Config) -> str | None:
    if not config.data.special_ids or config.data.tokenizer != "bytes":
        return None
    return 'special_ids are of a tokenizer.json, and tokenizer = "bytes" has its own: leave special_ids out'


def _default(table: type, key: str) -> object:
    return getattr(attrs.fields(table), key).default


def _adapters_only_have(key: str, table: str, whose: str) -> None:
    @_cross_check(f"adapter.{key}", f"adapter.{table}")
    def check(config: Config) -> str | None:
        value = getattr(config.adapter, key)
        if getattr(config.adapter, table) is not None or value == _default(AdapterConfig, key):
            return None
        return f"{key} = {shown(value)} is about {whose}, and there are none: set adapter.{table}, or leave {key} out"


_adapters_only_have("attach", "stack", "the stacks' own adapters")
_adapters_only_have("share", "stack", "the stacks' own adapters")
_adapters_only_have("active", "stack", "the stacks' own adapters")
_adapters_only_have("growth", "trunk", "the trunk's adapters")


@_cross_check("adapter.share", "adapter.attach")
def _only_after_a_freeze_is_there_a_share(config: Config) -> str | None:
    adapter = config.adapter
    if adapter.stack is None or adapter.attach == "freeze" or adapter.share == _default(AdapterConfig, "share"):
        return None
    return f'share is for attach = "freeze", and this one is "{adapter.attach}": leave share out'


def _no_adapters(config: Config) -> bool:
    return config.adapter.stack is None and config.adapter.trunk is None


@_cross_check("training.adapter_lr", "adapter.stack", "adapter.trunk")
def _only_adapters_have_their_rate(config: Config) -> str | None:
    if config.training.adapter_lr == _default(TrainingConfig, "adapter_lr") or not _no_adapters(config):
        return None
    return "there are no adapters for adapter_lr: set adapter.stack or adapter.trunk, or leave adapter_lr out"


def _qlora_has_adapters(config: Config) -> Iterator[Misfit]:
    choices = {"precision.trunk": config.precision.trunk}
    choices |= {f"precision.stacks.{stack}": choice for stack, choice in config.precision.stacks.items()}
    for key, choice in choices.items():
        distribution, _, name = choice.use.rpartition(":") if choice else ("", "", "")
        if name == "qlora" and normalised(distribution) in ("", "stackwise-bitsandbytes") and _no_adapters(config):
            message = '"qlora" is nf4 with adapters: set adapter.trunk or adapter.stack, or use = "nf4"'
            yield (f"{key}.use",), message


_CHECKS.append(_qlora_has_adapters)
