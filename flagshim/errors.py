"""The one kind of error a person sees: what went wrong, and the way out."""

import errno

EXIT_FAILURE = 125
"""flagshim itself failed, as in env(1), timeout(1) and docker-run(1)."""
EXIT_GATE = 122
"""A gate failed (--fail-on, --baseline); even, so that no guest says it by isa-debug-exit."""
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

LIMITS = "see ulimit -n, ulimit -u and ulimit -v"
_LIMIT_HINTS = {
    errno.EMFILE: "see ulimit -n",
    errno.ENFILE: "see /proc/sys/fs/file-max",
    errno.EAGAIN: "see ulimit -u, and pids.max of the cgroup",
    errno.ENOMEM: "see ulimit -v",
}


class FlagshimError(Exception):
    """A failure that ends the command with one line on stderr.

    Args:
        message: the cause, naming the file, option or process concerned.
        hint: what to do about it; one clause, no full stop.
        exit_code: the exit status of the command, 125 unless it says otherwise.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


def hint_for(error: OSError, otherwise: str) -> str:
    """Return what to do about an error of the kernel's: look at the limit that was reached.

    Args:
        error: what a call of ours has failed with.
        otherwise: the hint if it is about no limit.
    """
    return _LIMIT_HINTS.get(error.errno or 0, otherwise)
