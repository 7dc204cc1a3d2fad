"""Implementations that this distribution registers."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def trainer_mode():
    return [
        Implementation(
            "ladder",
            "Each stack at its own mask fractions, up the rack and then again",
            "stackwise_ladder.ladder:Ladder",
            "stackwise_ladder.options:LadderOptions",
        )
    ]
