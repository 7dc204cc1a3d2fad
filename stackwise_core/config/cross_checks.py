"""Checks that need several tables, or several keys none of which is to blame alone."""

from collections.abc import Callable, Iterator

from stackwise_core.config.model import Config

Check = Callable[[Config], str | None]
_CHECKS: list[tuple[tuple[str, ...], Check]] = []


def cross_checks(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """The keys that don't fit together, the likeliest culprit first, and why.

    Args:
        config: may lack attributes, where tables of it were refused; what needs those isn't checked.
    """
    for keys, check in _CHECKS:
        try:
            message = check(config)
        except AttributeError:
            continue
        if message:
            yield keys, message


def _cross_check(*keys: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        _CHECKS.append((keys, check))
        return check

    return register


@_cross_check("training.window", "training.batch_size", "training.gradient_accumulation")
def _a_step_fits_its_window(config: Config) -> str | None:
    training = config.training
    sequences = training.batch_size * training.gradient_accumulation
    if training.window >= sequences:
        return None
    return f"expected at least batch_size x gradient_accumulation = {sequences}, found {training.window}"


@_cross_check("training.head", "rack.tie_embeddings")
def _a_head_that_trains_is_untied(config: Config) -> str | None:
    if config.training.head == "frozen" or not config.rack.tie_embeddings:
        return None
    return 'head = "trains" needs a head of its own: set rack.tie_embeddings = false'


@_cross_check("training.weighting", "training.over")
def _a_bound_needs_a_band(config: Config) -> str | None:
    if config.training.weighting != "nelbo" or config.training.over != "depth":
        return None
    return (
        'weighting = "nelbo" needs a band of mask fractions, and over = "depth" gives each phase a single one: '
        'leave weighting out, or set over = "time" or "both"'
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
