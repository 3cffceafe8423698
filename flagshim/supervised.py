"""A supervised command, for Python programs: `flagshim run` as a child process, and its trace.

A process of its own, because the supervisor has one thread, blocks signals, and has to be the
parent of what it traces: nothing one would want of a test driver.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, TypedDict, Unpack

from flagshim.errors import FlagshimError
from flagshim.interpreter import ourselves
from flagshim.trace.events import OpenEvent
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import BlindSpot, Session

PathName = str | os.PathLike[str]
Stream = int | IO[Any] | None

_GRACE_SECONDS = 3.0
"""How long a command may take to end after SIGTERM, before it is killed."""


@dataclass(frozen=True)
class Completed:
    """A command that was supervised and has ended."""

    args: tuple[str, ...]
    returncode: int
    """Its exit status; negative: minus the signal that ended it."""
    stdout: Any
    stderr: Any
    """What it wrote, bytes or str as asked; None where it was not captured."""
    session: Session
    """How it was run, and how many opens were looked at (`seen`) and not written down (`lost`)."""
    events: tuple[OpenEvent, ...]
    """Its opens with a flag of a rule, in the order of time."""
    blind_spots: tuple[BlindSpot, ...]
    """What may have opened files unseen."""


class Options(TypedDict, total=False):
    """How to run a command; every one may be left out."""

    user: str
    """Start the command as this user (root only)."""
    when: Literal["refused", "always"]
    """Clear a flag only where the kernel refuses the open for it (default), or always."""
    clear: Sequence[str]
    """Flags to clear. Default: O_NOATIME."""
    paths: Sequence[str]
    """Only for paths that match one of these globs. Default: all."""
    rules: PathName
    """Take the rules from this TOML file instead of the three above."""
    trace: PathName
    """Add a session to this trace, made if missing. Default: a temporary one."""
    exempt: Sequence[str]
    """Programs to leave alone, with what they start, as gdb and strace need it."""
    keep: str
    """Bound the trace: so many events, or those of so long a time, as in "30d"."""
    timeout: float
    """Seconds the command may take, from its start."""
    stdin: Stream
    stdout: Stream
    stderr: Stream
    cwd: PathName | None
    env: Mapping[str, str] | None
    text: bool | None
    encoding: str | None
    errors: str | None
    bufsize: int
    pass_fds: Sequence[int]
    start_new_session: bool
    """These ten as for subprocess.Popen, and for the command alone: none of flagshim's words
    are in its stderr, and nothing in its environment matters to flagshim."""


_OF_POPEN = frozenset(
    ("stdin", "stdout", "stderr", "cwd", "env", "text", "encoding", "errors", "bufsize",
     "start_new_session")
)  # fmt: skip


def supervise(args: Sequence[PathName], **options: Unpack[Options]) -> "Supervised":
    """Start a command under flagshim.

        with flagshim.supervise(["qemu-system-x86_64", …], stdout=subprocess.PIPE) as vm:
            boot_messages = vm.stdout.read()
        assert not [event for event in vm.events if event.errno == "EPERM"]

    Args:
        args: the command, found through PATH, and its arguments.
        options: see `Options`.

    Raises:
        FlagshimError: flagshim cannot do what is asked, as where `flagshim run` exits with 125 to
            127: there is no such command or user, the trace cannot be written. `exit_code` has
            the number. A command that exits with 125 itself is none.
    """
    return Supervised(args, options)


def run(
    args: Sequence[PathName],
    *,
    input: bytes | str | None = None,  # noqa: A002  (as in subprocess)
    capture_output: bool = False,
    check: bool = False,
    **options: Unpack[Options],
) -> Completed:
    """Run a command under flagshim until it, and all it started, have ended.

    Args:
        args: the command, found through PATH, and its arguments.
        input: what it gets on standard input.
        capture_output: keep what it writes to standard output and error.
        check: raise an error if its exit status is not 0.
        options: see `Options`.

    Raises:
        FlagshimError: as for `supervise`.
        subprocess.TimeoutExpired: it took longer than `timeout`, and was stopped.
        subprocess.CalledProcessError: its exit status is not 0, and `check` was asked for.
    """
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Supervised(args, options) as child:
        stdout, stderr = child.communicate(input)
        status = child.wait()
        if check and status:
            raise subprocess.CalledProcessError(status, child.args, stdout, stderr)
        return Completed(
            child.args, status, stdout, stderr, child.session, child.events, child.blind_spots
        )


class Supervised:
    """A command running under flagshim; `supervise` makes one. A context manager.

    At the end of the `with` block the pipes are closed and the command is waited for, within the
    timeout it was given. If the block is left by an exception, the command is stopped.
    """

    def __init__(
        self,
        args: Sequence[PathName],
        options: "Options",
    ) -> None:
        self.args = _words(args)
        _check(options)
        timeout, trace = options.get("timeout"), options.get("trace")
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._session_id = 0
        self._ended = False
        self._killed = False
        self._failure: FlagshimError | None = None
        self._own_folder: weakref.finalize[..., Any] | None = None
        if trace is None:
            folder = tempfile.mkdtemp(prefix="flagshim-")
            self._own_folder = weakref.finalize(self, shutil.rmtree, folder, True)
            trace = os.path.join(folder, "trace.db")
        self.trace = Path(os.path.abspath(trace))
        """The trace; a temporary file, gone with this object, unless one was named."""
        self._start([*_rule_words(options), "-o", str(self.trace), "--", *self.args], options)

    def _start(self, words: Sequence[str], options: "Options") -> None:
        read_end, write_end = os.pipe()
        self._status = open(read_end, "rb")
        try:
            self._process: subprocess.Popen[Any] = subprocess.Popen(
                [*ourselves(), "run", "--status-fd", str(write_end), *words],
                pass_fds=(*options.get("pass_fds", ()), write_end),
                **{name: value for name, value in options.items() if name in _OF_POPEN},  # type: ignore[call-overload]
            )
        except BaseException:
            self._status.close()
            raise
        finally:
            os.close(write_end)
        self.stdin: IO[Any] | None = self._process.stdin
        self.stdout: IO[Any] | None = self._process.stdout
        self.stderr: IO[Any] | None = self._process.stderr
        try:
            began = self._hear("begin")
        except BaseException:  # ^C
            self.stop()
            raise
        if not began:
            self._close_pipes()
            self._end()
        if self._failure:
            raise self._failure

    def _hear(self, until: str | None) -> bool:
        """Take what flagshim says until it says `until`, or has ended; tell whether it did."""
        for line in self._status:
            message = json.loads(line)
            match message["status"]:
                case "begin":
                    self._session_id = message["session"]
                case "error":
                    self._failure = FlagshimError(
                        message["message"], message["hint"], message["exit_status"]
                    )
                case "end":
                    self._ended = True
            if message["status"] == until:
                return True
        return False

    # --- as subprocess.Popen ----------------------------------------------------------------

    @property
    def pid(self) -> int:
        """PID of the supervisor. SIGHUP, INT, QUIT, TERM, USR1 and USR2 sent to it reach CMD."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The command's exit status; negative: minus its fatal signal; None while it runs."""
        return self._process.returncode

    def poll(self) -> int | None:
        """Return the exit status if the command, and all it started, has ended; else None.

        Raises:
            FlagshimError: it could not be started, or flagshim was killed, and it with it.
        """
        if self._process.poll() is not None:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command and all it started have ended; return its exit status.

        Args:
            timeout: in seconds; None: what is left of that of `supervise`. If it passes, the
                command goes on.

        Raises:
            subprocess.TimeoutExpired: it has not ended by then.
            FlagshimError: it could not be started, or flagshim was killed, and it with it.
        """
        try:
            self._process.wait(self._left(timeout))
        except subprocess.TimeoutExpired:
            raise self._expired(timeout) from None
        return self._end()

    def communicate(
        self,
        input: bytes | str | None = None,  # noqa: A002  (as in subprocess)
        timeout: float | None = None,
    ) -> tuple[Any, Any]:
        """Write `input` to the command, read all it says, and wait as `wait` does.

        Returns:
            What it wrote to standard output and error; None for what is not a pipe.
        """
        try:
            output: tuple[Any, Any] = self._process.communicate(input, self._left(timeout))
        except subprocess.TimeoutExpired:
            raise self._expired(timeout) from None
        self._end()
        return output

    def send_signal(self, number: int) -> None:
        """Send a signal to the supervisor, which passes on those named at `pid`."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM to the command."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the supervisor, and with it, at once, the command and all it started."""
        self._killed = True
        self._process.kill()

    # --- what subprocess has not ------------------------------------------------------------

    def stop(self) -> None:
        """End the command: SIGTERM, and after three seconds SIGKILL."""
        if self._process.poll() is None:
            self.terminate()
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process.wait()
        with contextlib.suppress(FlagshimError):
            self._end()

    @property
    def events(self) -> tuple[OpenEvent, ...]:
        """Its opens with a flag of a rule, in the order of time; while it runs, those so far.

        Raises:
            FlagshimError: the trace cannot be read.
        """
        with TraceReader(self.trace) as reader:
            return tuple(
                traced.event for traced in reader.events() if traced.session_id == self._session_id
            )

    @property
    def session(self) -> Session:
        """The command's row in the trace: when, where, as whom; `seen` and `lost` events."""
        with TraceReader(self.trace) as reader:
            for found in reader.sessions():
                if found.id == self._session_id:
                    return found
        raise FlagshimError(f"{self.trace}: session {self._session_id} is not in it", "did it run?")

    @property
    def blind_spots(self) -> tuple[BlindSpot, ...]:
        """What may have opened files unseen."""
        with TraceReader(self.trace) as reader:
            return tuple(reader.blind_spots().get(self._session_id, ()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self.stop()
            self._close_pipes()
            if self._failure:  # then that is why the block has failed
                raise self._failure
            return
        self._close_pipes()
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise

    def _close_pipes(self) -> None:
        for pipe in (self.stdout, self.stderr, self.stdin):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _left(self, timeout: float | None) -> float | None:
        if timeout is not None or self._deadline is None:
            return timeout
        return max(0.0, self._deadline - time.monotonic())

    def _expired(self, timeout: float | None) -> subprocess.TimeoutExpired:
        """Name the command in the error, not how we started it."""
        seconds = self._timeout if timeout is None else timeout
        return subprocess.TimeoutExpired(self.args, seconds or 0.0)

    def _end(self) -> int:
        """Make sure the trace is complete and tell a failure of ours from one of CMD's."""
        if not self._status.closed:
            self._hear(None)  # until the keeper of the trace is done, too
            self._status.close()
        status = self._process.wait()
        if not (self._failure or self._ended or self._killed):
            self._failure = FlagshimError(
                f"{self.args[0]}: its supervisor ended before it, with status {status}",
                f"the trace {self.trace} has what was written until then",
            )
        if self._failure:
            raise self._failure
        return status


def _words(args: Sequence[PathName]) -> tuple[str, ...]:
    if isinstance(args, str | bytes):
        raise TypeError("args is one string; split it: shlex.split(args), or ['sh', '-c', args]")
    return tuple(os.fsdecode(word) for word in args)


def _check(options: Options) -> None:
    """Refuse what would otherwise be left aside without a word.

    Raises:
        TypeError: naming the option.
    """
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    for name in ("clear", "paths", "exempt"):
        if isinstance(options.get(name), str | bytes):
            raise TypeError(f"{name} is one string; give a list of them")
    for name in ("user", "keep"):
        if not isinstance(options.get(name), str | None):
            raise TypeError(f"{name} is not a string")


def _rule_words(options: Options) -> list[str]:
    """Return the options of `flagshim run` that say whom to start and what to clear."""
    rules = options.get("rules")
    given = [
        ("--user", options.get("user")),
        ("--when", options.get("when")),
        ("--keep", options.get("keep")),
        ("--rules", None if rules is None else os.path.abspath(os.fsdecode(rules))),
        *(("--clear", flag) for flag in options.get("clear", ())),
        *(("--path", glob) for glob in options.get("paths", ())),
        *(("--except", program) for program in options.get("exempt", ())),
    ]
    return [word for option, value in given if value is not None for word in (option, value)]
