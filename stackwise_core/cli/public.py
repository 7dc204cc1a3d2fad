"""The parts of the core's commands that are for everybody's: arguments, output, tables, signs of life."""

from stackwise_core.cli.arguments import Run, config_options, plugin_option, refuse_other_than_run, run_argument
from stackwise_core.cli.bars import Bars, counting
from stackwise_core.cli.output import json_option, print_json
from stackwise_core.cli.pulse import working
from stackwise_core.cli.quantities import count, duration
from stackwise_core.cli.shown_paths import shown
from stackwise_core.cli.tables import print_aligned, print_table

__all__ = [
    "Bars",
    "Run",
    "config_options",
    "count",
    "counting",
    "duration",
    "json_option",
    "plugin_option",
    "print_aligned",
    "print_json",
    "print_table",
    "refuse_other_than_run",
    "run_argument",
    "shown",
    "working",
]
