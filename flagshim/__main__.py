"""`flagshim`, and `python -m flagshim`."""

import signal


def main() -> None:
    """Run the command line.

    Until it can say that it was interrupted, ^C is the end without a word, and no traceback.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flagshim import cli  # noqa: PLC0415  (takes most of the time of a start)

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
