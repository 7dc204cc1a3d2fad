"""``python -m stackwise_core.cli``: the command line without its script."""

from stackwise_core.cli import main

main()
