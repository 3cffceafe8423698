"""The supervisor's end of the trace: takes events, and hardly ever waits to get rid of them."""

import contextlib
import fcntl
import gc
import marshal
import os
import select
import sqlite3
import time
from collections import Counter

from flagshim.saying import Say
from flagshim.trace.bounds import EVERYTHING, Bound
from flagshim.trace.events import NOT_RESCUED, Decision, OpenEvent
from flagshim.trace.keeper import HEADER, keep
from flagshim.trace.store import Batch, Session, TraceFile

_FLUSH_NS = 50_000_000
"""How long an event is held at most while the supervisor is busy."""
_FLUSH_EVENTS = 251
_PIPE_SIZE = 1 << 20
_PATIENCE = range(2_003, 25_013)
"""Events held with which the supervisor slows down for a keeper that gets too little CPU."""
_PATIENCE_SECONDS = 1e-3
"""How long it waits then, at most, each time: a disk that stands still must not stop a program."""
_HELD_MAX = 100_003
"""Events held for a keeper that does not keep up; later ones are lost, and counted."""


class TraceWriter:
    """Buffers events and passes them to a keeper, a process that talks to SQLite.

    A slow disk or a locked file then delays nobody, and what was handed over is written
    even if the supervisor is killed. Implements what an engine wants of a sink.
    """

    def __init__(
        self, session: Session, say: Say, bound: Bound = EVERYTHING, without: bool = False
    ) -> None:
        """Start the keeper.

        Args:
            session: what events belong to; it may have had another writer before.
            say: called in the keeper when it cannot write.
            bound: how much of the trace is kept.
            without: whether to go on without a keeper, and count what is lost, if there cannot
                be one.

        Raises:
            OSError: there cannot be another process.
        """
        self._session = session
        self.seen = 0
        self.cleared = 0
        self.lost = 0
        self.still_refused = 0
        """Cleared, and failed all the same."""
        self.not_rescued = 0
        """Left to the kernel, which refused or may have refused them."""
        self.trouble = ""
        """What kept events from the trace, once `close` has returned."""
        self._told_lost = 0
        self._lost_because = ""
        self._blind_spots: Counter[tuple[str, str | bytes]] = Counter()
        self._troubles: list[tuple[int, str]] = []
        self._events: list[tuple[object, ...]] = []
        self._held_since = 0
        self._outbox = b""
        self._broken = False

        read_end, self._pipe = os.pipe2(os.O_CLOEXEC)
        self._reply, reply_end = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # above /proc/sys/fs/pipe-max-size
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        gc.freeze()  # so that the keeper's collector does not copy the pages it shares with us
        try:
            self.keeper_pid = os.fork()
        except OSError:
            if not without:
                raise
            self.keeper_pid, self._broken = -1, True
        if self.keeper_pid == 0:
            keep(session, bound, read_end, reply_end, say)
        os.close(read_end)
        os.close(reply_end)
        os.set_blocking(self._pipe, False)

    # --- what an engine calls -----------------------------------------------------------

    def record(self, event: OpenEvent) -> None:
        """Take one finished call."""
        self.seen += 1
        if event.decision == Decision.CLEARED:
            self.cleared += 1
            if event.errno is not None:
                self.still_refused += 1
        elif event.reason.startswith(NOT_RESCUED):
            self.not_rescued += 1
        if len(self._events) >= _HELD_MAX or self._broken:
            self.lost += 1
            return
        if not self._events:
            self._held_since = time.time_ns()
        self._events.append(tuple(event))

    def blind_spot(self, kind: str, program: str | bytes, count: int = 1) -> None:
        """Count something that may have opened files unseen."""
        self._blind_spots[kind, program] += count

    def complain(self, text: str) -> None:
        """Note, in the trace, something that people should know of this session."""
        self._troubles.append((time.time_ns(), text))

    def lose(self, count: int, why: str) -> None:
        """Count calls that were seen, but of which no event reached us."""
        self.seen += count
        self.lost += count
        self._lost_because = why
        self.complain(why)

    def flush_if_due(self) -> None:
        """Hand on what has been held for long enough."""
        if self._outbox or (  # what the pipe would not take before
            self._events
            and (
                len(self._events) >= _FLUSH_EVENTS or time.time_ns() - self._held_since > _FLUSH_NS
            )
        ):
            self.flush()

    def flush(self) -> bool:
        """Hand on what is held, as far as the pipe takes it; False if some is left."""
        while self._send():
            if not (self._events or self._blind_spots or self._troubles):
                return True
            batch = self._events[:_FLUSH_EVENTS]
            del self._events[:_FLUSH_EVENTS]
            spots = [(kind, name, n) for (kind, name), n in self._blind_spots.items()]
            lost = self.lost - self._told_lost
            self._told_lost = self.lost
            # What is still held is told with its events: we may be killed before that.
            self._post(("events", batch, len(batch) + lost, lost, spots, self._troubles))
            self._blind_spots.clear()
            self._troubles = []
        return False

    # --- the end ------------------------------------------------------------------------

    def close(self, exit_status: int | None, began: bool = True, calls: int | None = None) -> None:
        """Hand on the rest, end the session, and wait until the keeper has written it.

        Args:
            exit_status: of CMD, negative for a fatal signal; None if it goes on without us.
            began: False takes the session back: CMD was never started.
            calls: how many were looked at in the whole session, where a former writer of it was
                killed; what is missing is lost.
        """
        os.set_blocking(self._pipe, True)
        self.flush()
        self._post(("end", exit_status, began, calls))
        self._send()
        os.close(self._pipe)
        with open(self._reply, "rb") as reply:
            answer = reply.read()
        if self.keeper_pid > 0:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.keeper_pid, 0)
        if answer:
            self.lost, self.trouble = marshal.loads(answer)
            self.trouble = self.trouble or self._lost_because
        else:
            self._mend(exit_status, calls)

    def _mend(self, exit_status: int | None, calls: int | None) -> None:
        """Say in the trace what its keeper, killed or never there, could not."""
        self.lost, self.trouble = self.seen, "the process that writes it was killed"
        if self.keeper_pid < 0:
            self.trouble = "no process could be started that writes it"
        with contextlib.suppress(sqlite3.Error, OSError):
            trace = TraceFile(self._session.trace)
            if calls is None:
                told, _ = trace.counts(self._session.id)  # by us and by former writers
                calls = told + self.seen if self.keeper_pid < 0 else max(told, self.seen)
            trace.append(self._session.id, Batch(troubles=[(time.time_ns(), self.trouble)]))
            trace.lose_what_is_missing(self._session.id, calls)
            _, self.lost = trace.counts(self._session.id)
            trace.end_session(self._session.id, exit_status)
            trace.leave_one_file()
            trace.close()

    def _post(self, message: tuple[object, ...]) -> None:
        body = marshal.dumps(message)  # type: ignore[arg-type]
        self._outbox += HEADER.pack(len(body)) + body

    def _has_room_soon(self) -> bool:
        return bool(select.select([], [self._pipe], [], _PATIENCE_SECONDS)[1])

    def _send(self) -> bool:
        """Write the outbox; False while the pipe is full."""
        while self._outbox and not self._broken:
            try:
                self._outbox = self._outbox[os.write(self._pipe, self._outbox) :]
            except BlockingIOError:
                if len(self._events) not in _PATIENCE or not self._has_room_soon():
                    return False
            except BrokenPipeError:
                self._broken = True
        if self._broken:
            self._outbox = b""
            self._events.clear()
        return True
