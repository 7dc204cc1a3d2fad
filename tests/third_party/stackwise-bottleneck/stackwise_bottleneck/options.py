"""Options of the adapter."""

from attrs import frozen

from stackwise_core.options import at_least, option


@frozen
class BottleneckOptions:
    width: int = option(8, "Features between the two layers.", check=at_least(1))
