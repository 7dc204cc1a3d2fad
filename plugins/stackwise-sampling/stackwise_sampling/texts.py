"""Texts from a finished run's rack: written, or with their gaps filled."""

from __future__ import annotations

from collections.abc import Iterator

from stackwise_core.engine.evaluation.arguments import whole
from stackwise_core.engine.evaluation.loaded_rack import LoadedRack
from stackwise_core.errors import UsageError
from stackwise_core.system.process_state import own_state
from stackwise_sampling import sampling as sampler
from stackwise_sampling.gapped_text import GappedText
from stackwise_sampling.sampling import Order, Sampling, Step
from stackwise_sampling.templates import parts_of
from stackwise_sampling.token_choice import NoPredictions


def sample(
    rack: LoadedRack,
    prompt: str = "",
    *,
    length: int | None = None,
    infill: str | None = None,
    depth: int | None = None,
    num: int = 1,
    steps: int | None = None,
    order: Order | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    block: int | None = None,
    seed: int | None = None,
) -> list[str]:
    """Write texts that begin with a prompt, or fill the gaps of one.

    Args:
        rack: from ``stackwise_core.load_rack``.
        prompt, length, infill: as ``text_for`` has them.
        depth: after how many stacks to read.
        num, steps, order, temperature, top_p, block, seed: as ``Sampling`` has them; the run's own seed where it is
            left out.

    Raises:
        UsageError: what is asked for doesn't fit the text or the rack.
    """
    text = text_for(rack, prompt, length=length, infill=infill)
    sampling = Sampling(order, steps, temperature, top_p, block, num, rack.seed if seed is None else seed)
    with rack.computing():
        *_, last = unmask(rack, text, sampling, depth)
    return [text.text(ids) for ids in last.ids.numpy()]


def text_for(rack: LoadedRack, prompt: str = "", *, length: int | None = None, infill: str | None = None) -> GappedText:
    """Return a text with gaps for a rack to fill.

    Args:
        rack: whose tokenizer it is cut with.
        prompt: what it begins with.
        length: tokens to write after the prompt; None: what that leaves of ``seq_len``, at least half of it.
        infill: in place of both, a text in which ``[MASK]`` is a missing token and ``[MASK:20]`` twenty.

    Raises:
        UsageError: ``infill`` has no gaps, or there is a prompt or length beside it.
    """
    _check_text("prompt", prompt)
    if length is not None:
        whole("length", length, 1)
    if infill is None:
        return GappedText.after(prompt, length, rack.tokenizer, rack.seq_len)
    if prompt or length is not None:
        raise UsageError(
            "infill with a prompt or length: expected one text, whose gaps say how much there is to write."
        )
    _check_text("infill", infill)
    return GappedText.of(parts_of(infill, "infill"), rack.tokenizer)


def unmask(rack: LoadedRack, text: GappedText, sampling: Sampling, depth: int | None = None) -> Iterator[Step]:
    """Fill a text's gaps, step by step; see ``sampling.sample``.

    Raises:
        UsageError: what is asked for doesn't fit the text or the rack. No step is done yet.
        StackwiseError: at a step whose predictions aren't finite, with the stack and the tensor that isn't.
    """
    with own_state():
        steps = sampler.sample(
            rack.at_depth(depth),
            text,
            sampling,
            seq_len=rack.seq_len,
            vocab_size=rack.spec.vocab_size,
            causal=rack.causal,
        )
        return _in_own_state(_naming_weights(rack, steps))


def _naming_weights(rack: LoadedRack, steps: Iterator[Step]) -> Iterator[Step]:
    try:
        yield from steps
    except NoPredictions:
        rack.refuse_predictions()


def _in_own_state(steps: Iterator[Step]) -> Iterator[Step]:
    """Run each step with our own settings of torch. Between steps the caller's settings hold."""
    while True:
        with own_state():
            step = next(steps, None)
        if step is None:
            return
        yield step


def _check_text(name: str, value: object) -> None:
    """See that an argument is a text that can be written as UTF-8.

    Raises:
        UsageError: it is something else; the message names the argument.
    """
    if not isinstance(value, str):
        raise UsageError(f"{name}: expected a text, found {value!r:.80}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{name}: expected UTF-8, found half a surrogate pair at character {error.start}.") from None
