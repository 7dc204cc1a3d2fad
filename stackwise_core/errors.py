"""The errors that a user can cause, each with the exit code that the command line gives it."""


class StackwiseError(Exception):
    """The run failed for a reason that one message explains; no traceback is shown."""

    exit_code = 1


class UsageError(StackwiseError):
    """The configuration or the command line asks for something that can't be."""

    exit_code = 2


class UnavailableError(StackwiseError):
    """A plugin, a package or a device that the configuration names isn't there."""

    exit_code = 3
