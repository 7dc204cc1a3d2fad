"""Entry point of the command ``stackwise``: an interrupt gets its message, also while the command line is imported."""

import sys


def main() -> None:
    """Run the command line, and exit."""
    try:
        from stackwise_core.cli import main as command_line
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
