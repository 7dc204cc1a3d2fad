"""Options of the trainer modes."""

from attrs import frozen

from stackwise_core.options import at_least, option


@frozen
class NoOptions:
    """This mode has none: all it needs stands in [training]."""


@frozen
class EndToEndOptions:
    epochs: int | None = option(
        None,
        "Passes over the training split. None: as many as all stacks together would have.",
        check=at_least(1),
    )
