"""Options of the tracker."""

from attrs import frozen

from stackwise_core.options import not_empty, option


@frozen
class TensorBoardOptions:
    directory: str | None = option(
        None,
        "Directory for event files, relative to the TOML. Left out: tensorboard/ in the run's own directory.",
        check=not_empty,
        path=(),
    )
