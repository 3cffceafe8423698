"""The command line: arguments in, exit status out."""

import importlib
import sys

import click

from flagshim import __version__, descriptors, status
from flagshim.cli.output import discard_output
from flagshim.errors import EXIT_FAILURE, FlagshimError, hint_for
from flagshim.saying import say

_COMMANDS = (
    "run", "exec", "wrap", "attach", "watch", "diagnose", "report", "baseline", "merge", "export",
    "doctor",
)  # fmt: skip


class _Commands(click.Group):
    """Imports a command's module when it is asked for: `run` is to start quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order one needs them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name."""
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"flagshim.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Run a program whose opens the kernel refuses because of O_NOATIME.

    flagshim starts an unchanged program (QEMU sharing a folder it does not own, say), clears
    the flag where it would be refused, and writes down every open it touched.
    """


def main() -> None:
    """Run the command line; the only place that turns an error into an exit status.

    Exit status: 125 if flagshim itself failed; for `run`, CMD's own, 126 if CMD could not be
    executed, 127 if it was not found. 122 if a gate failed (--fail-on, --baseline).
    """
    sys.exit(_main())


def _main() -> int:
    descriptors.claim_standard()
    try:
        result = cli(prog_name="flagshim", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help(), file=sys.stderr)
        return EXIT_FAILURE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        return _complain(error.format_message().rstrip(".").replace("\n", " ") + hint)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted")
    except FlagshimError as error:
        if status.tell(
            "error", message=error.message, hint=error.hint, exit_status=error.exit_code
        ):
            return error.exit_code
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:
        discard_output()
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror}; {hint_for(error, 'see flagshim doctor')}")
    except Exception as error:  # ours, then: a traceback would help nobody at night
        return _complain(f"{type(error).__name__}: {error}; a bug of flagshim, please report it")
    return result if isinstance(result, int) else 0


def _complain(text: str, exit_code: int = EXIT_FAILURE) -> int:
    if not status.tell("error", message=text, hint="", exit_status=exit_code):
        say(text)
    return exit_code
