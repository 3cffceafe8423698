"""What the notify engine opens as it did before, of a thread that stands still meanwhile."""

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flagshim import tracee
from flagshim.engines.calls import CallReader, event_of
from flagshim.engines.notify import repeats
from flagshim.engines.notify.filesystems import Filesystems
from flagshim.engines.notify.lanes import Lanes
from flagshim.engines.notify.leaving import Leave
from flagshim.engines.notify.listener import Notification
from flagshim.engines.notify.lookup import Lookup
from flagshim.engines.notify.opener import Opener
from flagshim.engines.notify.repeats import Repeats
from flagshim.engines.notify.standing import Impersonation, Standings
from flagshim.linux.files import AT_FDCWD, RESOLVE_CACHED
from flagshim.rules import BUILT_IN, Rule, When
from flagshim.syscalls import Kind
from flagshim.trace.events import OpenEvent
from tests.kernel.conftest import SECONDS, Place
from tests.kernel.ways import status_of
from tests.support import require, wait_until

X86_64, I386 = 0xC000003E, 0x40000003
NR_OPENAT = 257
READ = os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC
USER = 3001
CAP_FOWNER = 3
HOLDS = f"""
import ctypes, os, struct, sys
def be_capable(effective):
    header = struct.pack("=Ii", 0x20080522, 0)
    sets = struct.pack("=6I", effective, {1 << CAP_FOWNER}, {1 << CAP_FOWNER}, 0, 0, 0)
    assert ctypes.CDLL(None).capset(header, sets) == 0
be_capable(0)
held = []
for line in sys.stdin:
    word = line.rstrip("\\n")
    if word == "capable":
        be_capable({1 << CAP_FOWNER})
    elif word.startswith("become "):
        print(flush=True)
        os.execv(word.removeprefix("become "), sys.orig_argv)
    held.append(ctypes.create_string_buffer(word.encode()))
    print(ctypes.addressof(held[-1]), flush=True)
"""


class Thread:
    """Somebody else's, who has paths in its memory."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
             "--inh-caps=+fowner", "--ambient-caps=+fowner", "/usr/bin/python3", "-c", HOLDS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.tid = self.process.pid

    def tell(self, word: str) -> str:
        """Have it do something, or hold a path."""
        assert self.process.stdin
        assert self.process.stdout
        print(word, file=self.process.stdin, flush=True)
        return self.process.stdout.readline()

    def calls(self, path: str | Path, flags: int = READ, arch: int = X86_64) -> Notification:
        """Return an openat(2) of it."""
        address = int(self.tell(str(path)))
        arguments = (AT_FDCWD & 0xFFFF_FFFF, address, flags, 0, 0, 0)
        return Notification(7919, self.tid, NR_OPENAT, arch, 0, arguments)


class Opening:
    """All that opens files for it."""

    def __init__(self, thread: Thread, *rules: Rule) -> None:
        self.thread = thread
        self.lanes = Lanes()
        self.standings = Standings(self.lanes)
        thread.tell("its answer means that it is who it is to be")
        self.standings.of(thread.tid)
        self.impersonation, self.filesystems = Impersonation(), Filesystems()
        lookup = Lookup(self.standings)
        self.opener = Opener(lookup, self.impersonation, self.filesystems)
        self.repeats = Repeats(
            self.lanes, self.standings, lookup, self.impersonation, self.filesystems
        )
        self.reader = CallReader(rules or (BUILT_IN,), None)  # type: ignore[arg-type]

    def as_ever(self, call: Notification) -> None:
        """Rewrite a call in the general way, and learn from it."""
        tid = call.tid
        executable = tracee.executable(tid)
        process = self.reader.process(tid, tracee.name_of(executable))
        key = (0, 0, call.number, *call.arguments)
        read = self.reader.read(
            tid, Kind.OPENAT, call.audit_arch, key, process, lambda: b"/"
        )  # fmt: skip
        assert read
        standing = self.standings.of(tid)
        try:
            opened = self.opener.open(read, tid, standing, True, lambda: True, patient=True)
            os.close(opened.fd)
            read.cleared, path, reason = read.clear, opened.path, None
        except Leave as leave:
            path, reason = read.full, leave.reason
        read.tries = 1
        event = event_of(read, tid, process, standing.fsuid, path, None, None, reason)
        self.repeats.learn(call, read, process, executable, event)

    def again(self, call: Notification) -> tuple[OpenEvent, int | None, int] | None:
        """Try it as before."""
        return self.repeats.open(Kind.OPENAT, call)

    def surely(self, call: Notification) -> tuple[OpenEvent, int | None, int]:
        """Try it until it is done: RESOLVE_CACHED is in vain while anybody mounts or renames."""
        return wait_until(lambda: self.again(call))


@pytest.fixture
def thread() -> Iterator[Thread]:
    require("root", None if os.geteuid() == 0 else "only root can be others")
    groups, gids = os.getgroups(), os.getresgid()
    thread = Thread()
    yield thread
    thread.process.communicate()
    os.setresgid(*gids)  # an Impersonation keeps the last thread's
    os.setgroups(groups)


@pytest.fixture
def opening(thread: Thread, place: Place) -> Iterator[Opening]:
    opening = Opening(thread)
    opening.as_ever(thread.calls(place.file))
    gc.collect()  # of earlier tests
    before = sorted(os.listdir("/proc/self/fd"))
    yield opening
    assert sorted(os.listdir("/proc/self/fd")) == before, "nothing is left open"
    assert os.geteuid() == 0
    opening.standings.close()


def closed(answer: tuple[OpenEvent, int | None, int] | None) -> bool:
    """Close what was opened; tell whether anything was."""
    if answer is None or answer[1] is None:
        return False
    os.close(answer[1])
    return True


def test_another_file(opening: Opening, place: Place) -> None:
    other = place.path / "other"
    other.write_text("other")
    link = place.path / "link"
    link.symlink_to("other")
    # As if somebody had followed it: it takes RESOLVE_CACHED in vain to note that for the first.
    made_ns = link.lstat().st_mtime_ns
    os.utime(link, ns=(made_ns + 10**9, made_ns), follow_symlinks=False)
    for path in (other, link):
        event, fd, closes_on_exec = opening.surely(opening.thread.calls(path))
        assert fd is not None
        assert os.read(fd, 8) == b"other"
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        os.close(fd)
        assert not flags & (os.O_NOATIME | os.O_NONBLOCK)
        assert closes_on_exec == os.O_CLOEXEC
        assert event.path == str(path)
        assert event.resolved == str(other)
        assert (event.decision, event.reason) == ("cleared", "owner is not fsuid")
        assert (event.pid, event.owner_uid, event.fsuid) == (opening.thread.tid, 0, USER)
        assert event.flags_before & ~event.flags_after == os.O_NOATIME


def test_a_file_of_its_own(opening: Opening, place: Place) -> None:
    mine = place.path / "mine"
    mine.write_text("mine")
    os.chown(mine, USER, USER)
    event, fd, _ = opening.surely(opening.thread.calls(mine))
    assert fd is None, "it goes on as it is"
    assert (event.decision, event.rule, event.reason) == ("kept", None, "not refused, as foreseen")
    assert event.flags_after == event.flags_before
    assert event.resolved == str(mine)


def test_learns_from_a_file_of_its_own(thread: Thread, place: Place) -> None:
    opening = Opening(thread)
    mine = place.path / "mine"
    mine.write_text("mine")
    os.chown(mine, USER, USER)
    opening.as_ever(thread.calls(mine))
    event, fd, _ = opening.surely(thread.calls(place.file))
    assert fd is not None
    os.close(fd)
    assert (event.decision, event.rule, event.reason) == (
        "cleared",
        "noatime",
        "owner is not fsuid",
    )
    assert event.flags_before & ~event.flags_after == os.O_NOATIME
    opening.standings.close()


def refuses(place: Place, name: str) -> Path:
    path = place.path / name
    match name:
        case "fifo":
            os.mkfifo(path)
        case "null":
            os.mknod(path, 0o020666, os.makedev(1, 3))
        case "secret":
            path.write_text("secret")
        case "to-descriptor":
            path.symlink_to(f"/proc/self/fd/{FD}")
    path.chmod(0o600 if name == "secret" else 0o666) if path.exists() else None
    return path


FD = 97


@pytest.mark.parametrize("name", ["fifo", "null", "secret", "absent", "to-descriptor"])
def test_what_is_for_the_general_way(opening: Opening, place: Place, name: str) -> None:
    """Neither touched nor opened: a FIFO, say, is not even open for a moment."""
    with place.file.open() as ours:
        os.dup2(ours.fileno(), FD)
        try:
            assert opening.again(opening.thread.calls(refuses(place, name))) is None
        finally:
            os.close(FD)


@pytest.mark.parametrize("path", ["/proc/version", "/proc/self/status", "", "/dev/null"])
def test_other_mounts(opening: Opening, path: str) -> None:
    assert opening.again(opening.thread.calls(path)) is None


def test_flags_are_looked_at(opening: Opening, place: Place) -> None:
    link = place.path / "link"
    link.symlink_to(place.file)
    thread = opening.thread
    assert opening.again(thread.calls(place.file, READ | os.O_NOFOLLOW)) is None, "not learnt yet"
    for flags, path in ((os.O_NOFOLLOW, link), (os.O_DIRECTORY, place.file)):
        folder = place.path if flags == os.O_DIRECTORY else place.file
        opening.as_ever(thread.calls(folder, READ | flags))
        assert closed(opening.surely(thread.calls(folder, READ | flags)))
        assert opening.again(thread.calls(path, READ | flags)) is None
    assert opening.again(thread.calls(place.file, arch=I386)) is None


Change = Callable[[Opening], object]
CHANGES: dict[str, Change] = {
    "someone is confined": lambda o: o.lanes.confine_someone(1, no_new_privs=True),
    "owner may be anybody": lambda o: setattr(o.impersonation, "overflow", 0),
    "the mount is not known": lambda o: o.filesystems.local_mounts.clear(),
    "we were somebody else": lambda o: setattr(o.impersonation, "last_ids", (1, 1, 1, 1, b"")),
    "we had other groups": lambda o: setattr(
        o.impersonation, "last_ids", (USER, USER, USER, USER, b"1 ")
    ),
    "it has another label": lambda o: setattr(o.impersonation, "label", b"confined"),
    "it has capabilities": lambda o: o.thread.tell("capable"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes(opening: Opening, place: Place, change: str) -> None:
    call = opening.thread.calls(place.file)
    assert closed(opening.surely(call))
    CHANGES[change](opening)
    assert opening.again(call) is None


def test_no_filesystem_is_waited_for(opening: Opening, fuse_layers: tuple[list[str], Path]) -> None:
    """Its server may be somebody who waits for us."""
    argv, mount = fuse_layers
    server = subprocess.Popen(argv)
    wait_until(mount.is_mount)
    server.send_signal(signal.SIGSTOP)
    wait_until(lambda: status_of(server.pid, "State")[0] == "T")
    help_out = threading.Timer(SECONDS, server.send_signal, [signal.SIGCONT])
    help_out.start()
    try:
        assert opening.again(opening.thread.calls(mount / "file")) is None
        assert status_of(server.pid, "State")[0] == "T", "it was not asked"
    finally:
        help_out.cancel()
        server.send_signal(signal.SIGCONT)
        subprocess.run(["umount", mount], check=True)
        server.wait(SECONDS)


def test_others_may_change_their_groups(opening: Opening, place: Place) -> None:
    opening.lanes.change_someones_groups()
    assert closed(opening.surely(opening.thread.calls(place.file)))


def test_what_is_in_vain_is_tried_less_often(
    opening: Opening, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever others mount meanwhile.
    monkeypatch.setattr(repeats, "_RESOLVE", repeats._RESOLVE & ~RESOLVE_CACHED)
    file, absent = opening.thread.calls(place.file), opening.thread.calls(place.path / "absent")
    for pause in (0, 1, 3, 7, 15, 31, 63, 101, 101):
        assert opening.again(absent) is None
        assert not any(closed(opening.again(file)) for _ in range(pause))
    assert closed(opening.again(file))
    assert opening.again(absent) is None
    assert closed(opening.again(file)), "all is forgotten after a success"


def with_flags(call: Notification, flags: int) -> Notification:
    return call._replace(arguments=(*call.arguments[:2], flags, *call.arguments[3:]))


def test_what_is_learnt_is_bounded(opening: Opening, place: Place) -> None:
    deep = place.path / ("deep" * 50) / "file"
    deep.parent.mkdir()
    deep.write_text("deep")
    call = opening.thread.calls(deep)
    sizes = []
    tracemalloc.start()
    for more in range(3 * 1009):  # in what no kernel looks at
        unheard = (
            more % 509 << 23 | (os.O_APPEND, os.O_NONBLOCK, 0)[more % 3] | more % 2 * os.O_SYNC
        )
        opening.as_ever(with_flags(call, READ | unheard))
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(sizes) < 1.25 * max(sizes[:1009])
    assert max(sizes) < 2 << 20, "no paths"


def test_garbage_in_the_upper_half_of_the_flags(opening: Opening, place: Place) -> None:
    call = with_flags(opening.thread.calls(place.file), READ | 7919 << 32)
    opening.as_ever(call)
    assert opening.again(call) is None


def test_another_program(opening: Opening, place: Place) -> None:
    """Rules may be for programs, and events name them."""
    program = shutil.copy("/usr/bin/python3", place.path / "another")
    opening.thread.tell(f"become {program}")
    assert opening.again(opening.thread.calls(place.file)) is None


@pytest.mark.parametrize(
    "rule",
    [
        Rule(clear=("O_NOATIME",), when=When.ALWAYS),
        Rule(clear=("O_NOATIME",), paths=("/**",)),
        Rule(clear=("O_NOATIME", "O_DIRECT")),
    ],
    ids=["always", "paths", "other flags"],
)
def test_rules_that_have_to_be_asked(thread: Thread, place: Place, rule: Rule) -> None:
    opening = Opening(thread, rule)
    call = thread.calls(place.file, READ | (os.O_DIRECT if len(rule.clear) > 1 else 0))
    opening.as_ever(call)
    assert opening.again(call) is None
    opening.standings.close()
