"""The errors that a user can cause, each with the exit code that the command line gives it; and memory's own."""

import errno

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: Python's, torch's on a CPU, which is a ``RuntimeError``, or torch's on a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class StackwiseError(Exception):
    """Failure of a run for a reason that one message explains; no traceback is shown."""

    exit_code = 1


class UsageError(StackwiseError):
    """Error of a configuration or command line that asks for something that can't be."""

    exit_code = 2


class UnavailableError(StackwiseError):
    """Error of a configuration whose plugin, package or device isn't available."""

    exit_code = 3
