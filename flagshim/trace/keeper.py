"""The process that writes the trace: reads batches from a pipe, puts them into SQLite.

It outlives a killed supervisor just long enough to write what it was given.
"""

import contextlib
import marshal
import os
import select
import signal
import sqlite3
import struct
import time
from typing import NoReturn

from flagshim import descriptors
from flagshim.linux.process import set_name, set_title
from flagshim.saying import Say
from flagshim.status import listeners
from flagshim.trace.bounds import EVERYTHING, Bound
from flagshim.trace.store import Batch, BlindSpot, Session, TraceFile

HEADER = struct.Struct("=I")
"""Length of the marshalled message that follows."""

_READ_SIZE = 1 << 16  # more at a time fragments the heap of a process that lives for months
_RETRY_SECONDS = 0.1
_LAST_TRIES_SECONDS = 5.0
"""How long CMD's end is held back for a trace that cannot be written."""
_HELD_MAX = 100_003
_SLACK = 10_007
"""Events beyond the bound of a trace before it is shortened: once for many of them."""
_LITTLE_SLACK = 1_009
"""The same for a trace that is to be small."""
_SHORTEN_SECONDS = 60.0
_NICE = 5

_IGNORED = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


def keep(session: Session, bound: Bound, pipe: int, reply: int, say: Say) -> NoReturn:
    """Be the keeper, in a process of its own, until the pipe ends."""
    status = 1
    try:
        for number in _IGNORED:  # meant for CMD; our end is the pipe's
            signal.signal(number, signal.SIG_IGN)
        os.nice(_NICE)  # writing can wait, opens cannot
        # Hold nothing that was handed to CMD; stderr is for our own troubles.
        set_name("flagshim")
        set_title(f"flagshim: keeper of {os.getppid()}, writes {session.trace}")
        descriptors.blank(0, 1)
        descriptors.close_all_but(pipe, reply, *listeners())
        keeper = _Keeper(session, bound, say)
        keeper.run(pipe)
        with contextlib.suppress(BrokenPipeError):  # the supervisor was killed
            os.write(reply, marshal.dumps((keeper.lost, keeper.trouble)))
        status = 0
    except Exception as error:
        say(f"trace {session.trace}: {type(error).__name__}: {error}; CMD goes on without it")
    finally:
        os._exit(status)


class _Keeper:
    def __init__(self, session: Session, bound: Bound, say: Say) -> None:
        self.lost = 0
        self.trouble = ""
        self._say = say
        self._session = session
        self._bound = bound
        self._shorten_at = 0.0
        self._trace = TraceFile(session.trace)
        self._trace.let_others_read()
        # What is not in the trace yet, as in a Batch.
        self._events: list[tuple[object, ...]] = []
        self._seen = 0
        self._all_seen = 0
        self._lost = 0
        self._blind_spots: list[BlindSpot] = []
        self._troubles: list[tuple[int, str]] = []
        self._dirty = False
        self._ended = False
        self._began = True
        self._exit_status: int | None = None
        self._calls: int | None = None

    def run(self, pipe: int) -> None:
        """Take messages until the supervisor is done or gone."""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        data = b""
        open_ = True
        while open_:
            if poll.poll(_RETRY_SECONDS * 1000 if self._dirty else None):
                chunk = os.read(pipe, _READ_SIZE)
                open_ = bool(chunk)
                data = self._take(data + chunk)
            self._write()
        self._finish()

    def _take(self, data: bytes) -> bytes:
        """Take every whole message off `data`; return the rest."""
        start = 0
        while len(data) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(data, start)
            end = start + HEADER.size + length
            if len(data) < end:
                break
            self._receive(marshal.loads(data[start + HEADER.size : end]))
            start = end
        return data[start:]

    def _receive(self, message: tuple[object, ...]) -> None:
        match message:
            case ("events", list(events), int(seen), int(lost), list(spots), list(troubles)):
                room = max(0, _HELD_MAX - len(self._events))
                lost += len(events) - len(events[:room])
                self.lost += lost
                self._events += events[:room]
                self._seen += seen
                self._all_seen += seen
                self._lost += lost
                self._blind_spots += spots
                self._troubles += troubles
                self._dirty = True
            case ("end", int() | None as exit_status, bool(began), int() | None as calls):
                self._ended, self._exit_status, self._began = True, exit_status, began
                self._calls = calls

    def _write(self) -> None:
        if not self._dirty:
            return
        batch = Batch(self._events, self._seen, self._lost, self._blind_spots, self._troubles)
        try:
            self._trace.append(self._session.id, batch)
        except sqlite3.Error as error:
            if not self.trouble:
                self.trouble = str(error)
                text = f"trace {self._trace.path}: {error}; CMD goes on, events are held back"
                self._troubles.append((time.time_ns(), text))
                with contextlib.suppress(OSError):
                    self._say(text)
            return
        self.trouble = self.trouble if self.lost else ""
        self._events.clear()
        self._blind_spots.clear()
        self._troubles.clear()
        self._seen = self._lost = 0
        self._dirty = False
        self._shorten(min(_SLACK, max(_LITTLE_SLACK, self._bound.events or 0)))

    def _shorten(self, slack: int) -> None:
        """Drop what is not to be kept. A trace that is locked just now can wait for it."""
        if self._bound == EVERYTHING:
            return
        if self._bound.seconds is not None and slack:
            if time.monotonic() < self._shorten_at:
                return
            self._shorten_at = time.monotonic() + _SHORTEN_SECONDS
        with contextlib.suppress(sqlite3.Error):
            self._trace.shorten(self._bound, slack)

    def _finish(self) -> None:
        deadline = time.monotonic() + _LAST_TRIES_SECONDS
        while True:
            self._write()
            if not self._dirty:
                self._shorten(0)
                with contextlib.suppress(sqlite3.Error):
                    self._end_session()
                    break
            if time.monotonic() > deadline:
                self.lost += len(self._events)
                break
            time.sleep(_RETRY_SECONDS)
        self._trace.leave_one_file()
        self._trace.close()
        if self._all_seen and not self._trace.is_there():
            self.lost, self.trouble = self._all_seen, "it was deleted meanwhile"

    def _end_session(self) -> None:
        if not self._ended:  # `ended_ns` stays NULL
            trouble = (time.time_ns(), "the supervisor was killed")
            self._trace.append(self._session.id, Batch(troubles=[trouble]))
            return
        if self._began:
            if self._calls is not None:
                self._trace.lose_what_is_missing(self._session.id, self._calls)
            self._trace.end_session(self._session.id, self._exit_status)
        else:
            self._trace.remove_session(self._session)
