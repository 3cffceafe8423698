"""A supervisor that may open everything opens nothing that its program could not open itself.

Root's supervisor of the notify engine opens files for a program that is not root. Each scene of
programs/deputy is run three times: natively without O_NOATIME, natively with it, and with it
under flagshim. Every single open has to end as it did natively with the flag; or, where nothing
but the flag was in the way, as it did without.
"""

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flagshim.probes import reason_notify_unavailable
from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Run, Runner
from tests.processes import children, role_of
from tests.support import REPOSITORY, flagshim_command, require, rows, wait_until

SCENES = REPOSITORY / "tests/kernel/programs/deputy"
A, B = 3001, 3002
"""As in its users.py."""


@pytest.fixture(autouse=True)
def can_listen() -> None:
    require("notify", reason_notify_unavailable())


Result = dict[str, str]
Play = Callable[..., tuple[Result, Result, Result, Run]]


@pytest.fixture
def play(run: Runner, place: Place) -> Play:
    """Play a scene: natively without and with O_NOATIME, and under flagshim."""
    folder = place.path / "stage"

    def one(scene: str, flag: str, supervised: bool) -> tuple[Result, Run | None]:
        shutil.rmtree(folder, ignore_errors=True)
        _set_up(folder)
        argv = ["/usr/bin/python3", str(SCENES), scene, flag, str(folder)]
        if supervised:
            shim = run.supervised(argv, "--engine", "notify", user=None)
        else:
            shim = run.native(argv, user=0)
        status = shim.status if supervised else shim.returncode
        out, err = (shim.out, shim.err) if supervised else (shim.stdout, shim.stderr)
        require("mounts", "no namespaces to be had here" if status == 77 else None)
        assert status == 0, err
        assert "Traceback" not in err, err
        lines = [line.rpartition(" = ") for line in out.splitlines()]
        found: Result = {}
        for label, _, result in lines:
            name, again = label, 0
            while name in found:
                again += 1
                name = f"{label} #{again}"
            found[name] = result
        return found, shim if supervised else None

    def play_(scene: str) -> tuple[Result, Result, Result, Run]:
        plain, _ = one(scene, "plain", False)
        flagged, _ = one(scene, "noatime", False)
        served, shim = one(scene, "noatime", True)
        assert shim is not None
        return plain, flagged, served, shim

    return play_


def _set_up(folder: Path) -> None:
    def put(name: str, content: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.chown(path, uid, gid)
        path.chmod(mode)

    def folder_of(name: str, mode: int, gid: int = 0) -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.chown(folder / name, 0, gid)
        (folder / name).chmod(mode)

    folder.mkdir()
    folder.chmod(0o755)
    put("file", "content\n")
    put("secret", "secret\n", 0o600)
    put("outside", "outside\n")
    put("other", "other\n")
    put("leased", "content\n", 0o666)
    put("writable", "content\n", 0o666)
    put("of-1", "content\n", 0o644, 1, 1)
    put("of-1-secret", "secret 1\n", 0o600, 1, 1)
    put("of-1-group-2", "content\n", 0o644, 1, 2)
    put("of-1-secret-group-2", "secret 1\n", 0o600, 1, 2)
    put("mine", "mine\n", 0o644, NOBODY, NOBODY)
    put("mine-locked", "mine\n", 0o000, NOBODY, NOBODY)
    put("of-a", "a\n", 0o640, 0, A)
    put("of-b", "b\n", 0o660, 0, B)
    put("denied-a", "not a\n", 0o604, 0, A)
    put("denied-b", "not b\n", 0o606, 0, B)
    for name, mode, gid in (("dir-a", 0o750, A), ("dir-b", 0o710, B), ("dir-set-a", 0o2770, A)):
        folder_of(name, mode, gid)
        put(f"{name}/inner", name)
    put("locked-secret/secret", "secret\n")
    folder_of("locked-secret", 0o700)
    put("locked/inner", "host's\n")
    put("open/secret", "host's\n")
    for name in ("jail/sub", "jail/hidden"):
        folder_of(name, 0o755)
    (folder / "jail/hidden").chmod(0o700)
    put("jail/inner", "inner\n")
    put("jail/sub/below", "below\n")
    put("jail/hidden/inner", "hidden\n")
    put(f"jail/{folder}/outside", "inside\n")  # the same path means another file in there
    links = {
        "jail/absolute": f"{folder}/other", "jail/climbing": "../../../../other",
        "jail/chain": "absolute", "jail/relative": "sub/../inner", "jail/to-secret": "../secret",
        "jail/sub/relative-below": "./below", "link-to-fd": "/proc/self/fd/0",
        "link-to-stdin": "/dev/stdin",
        "link-to-environ": "/proc/self/environ", "link-to-cwd": "/proc/self/cwd",
        "link-to-fifo": "fifo",
    }  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "fifo")
    for minor, name in ((3, "null"), (5, "zero"), (7, "full")):
        os.mknod(folder / name, stat.S_IFCHR, os.makedev(1, minor))
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)
        server.bind("socket")
        os.chdir(here)
    for name in ("fifo", "null", "zero", "full", "socket"):
        (folder / name).chmod(0o666)


def check(plain: Result, flagged: Result, served: Result) -> set[str]:
    """Compare each open; return those that were rescued."""
    assert plain.keys() >= flagged.keys() == served.keys()
    wrong = {
        label: (plain[label], flagged[label], result)
        for label, result in served.items()
        if result != flagged[label] and not (flagged[label] == "EPERM" and result == plain[label])
    }
    assert not wrong
    return {label for label in served if served[label] != flagged[label]}


def test_roots(play: Play) -> None:
    plain, flagged, served, _ = play("chroot")
    rescued = check(plain, flagged, served)
    assert {"/inner 0", "below 0", "relative-below 0", "out outside 0", "outside 0"} <= rescued


def test_mounts(play: Play) -> None:
    rescued = check(*play("mounts")[:3])
    assert {"/file 0", "before file 0", "from here file 0", "/locked/inner 0"} <= rescued


def test_user_namespaces(play: Play) -> None:
    plain, flagged, served, _ = play("userns")
    rescued = check(plain, flagged, served)
    assert {"'0 65534 1' file 0", "'0 65534 1' of-1 0"} <= rescued
    assert served["'0 65534 1' mine-locked 0"] == "b'mine\\n'", "by CAP_DAC_OVERRIDE inside"


def test_groups(play: Play) -> None:
    plain, flagged, served, _ = play("groups")
    rescued = check(plain, flagged, served)
    assert len(rescued) > 100
    assert "SECRET" not in served.values()


def test_threads(play: Play) -> None:
    plain, flagged, served, _ = play("threads")
    rescued = check(plain, flagged, served)
    assert {"0 nobody file 0", "2 group of-a 0", "1 fsuid file 0", "1 fsgid of-a 0"} <= rescued


def test_names_of_the_process_itself(play: Play) -> None:
    plain, flagged, served, shim = play("magic")
    check(plain, flagged, served)
    assert not [
        path for (path,) in shim.events("resolved", "decision = 'cleared'") if "/proc" in path
    ]


def test_special_files(play: Play) -> None:
    plain, flagged, served, shim = play("special")
    assert not check(plain | flagged, flagged, served)
    assert rows(shim.trace, "SELECT DISTINCT decision FROM event") == [("kept",)]


def test_truncation(play: Play) -> None:
    """Nothing is truncated for an open that fails, not even for want of a descriptor."""
    plain, flagged, served, _ = play("truncate")
    end = {label for label in served if label.startswith("at the end")}
    assert {label: served[label] for label in end} == {label: plain[label] for label in end}
    assert served["at the end all"] == "0"
    assert served["full all"] == "8"
    rest = {label: result for label, result in served.items() if label not in end}
    rescued = check(plain, {label: flagged[label] for label in rest}, rest)
    assert rescued == {"/scratch/all 1002", "/scratch/write 1001"}


def test_files_to_be_made(play: Play) -> None:
    plain, flagged, served, _ = play("create")
    rescued = check(plain, flagged, served)
    assert {"mine theirs 102", "mine of-1 100"} <= rescued
    created = {label for label in rescued if int(label.split()[-1], 8) & os.O_CREAT}
    # Whether the kernel itself refuses those is a matter of fs.protected_regular.
    assert not {label for label in created if label.startswith("sticky")}


def test_resolve(play: Play) -> None:
    plain, flagged, served, _ = play("resolve")
    rescued = check(plain, flagged, served)
    assert {"0 here file", "8 here file", "10 here jail/relative", "1 trunc"} <= rescued


def test_lease(play: Play) -> None:
    plain, flagged, served, shim = play("lease")
    rescued = check(plain, flagged, served)
    assert {"waits 1002", "another, meanwhile 0"} <= rescued
    assert served["while it was held"] == "b'content\\n'", "truncated only after that"
    assert served["does not wait 4002"] == "EPERM", "the call went on as it was"
    assert shim.events("errno", f"flags_before & {os.O_NONBLOCK}") == [("EPERM",)]


def test_landlock(play: Play) -> None:
    """What a program has forbidden itself stays forbidden, whoever its parent seems to be."""
    plain, flagged, served, _ = play("landlock")
    rescued = check(plain, flagged, served)
    assert {"before 0", "never confined: denied 0"} <= rescued
    denied = {label for label in served if "denied" in label and "never" not in label}
    assert {plain[label] for label in denied} == {"EACCES"}
    assert {served[label] for label in denied} == {"EPERM"}, "O_NOATIME is looked at before"
    assert len(denied) == 9


def test_flags_of_descriptors(play: Play) -> None:
    plain, flagged, served, _ = play("setfl")
    rescued = check(plain, flagged, served)
    assert {"file 0o0", "secret 0o2000", "directory 0o0", "pipe 0o4000"} <= rescued
    assert "pipe 0o20000" not in rescued, "the signals would be for a descriptor of the supervisor"


def test_calls_like_those_before(play: Play) -> None:
    """Nobody profits by what was found for a call just like his."""
    plain, flagged, served, _ = play("again")
    rescued = check(plain, flagged, served)
    assert {"1 0 file 4000 #1", "2 3001 of-a 4000", "at jail inner 0", "jailed 0 #2"} <= rescued
    assert served["capability 2 secret 4000"] == plain["capability 2 secret 4000"] != "EACCES"
    assert served["no room 0"] == "EMFILE"


@pytest.fixture
def changing(place: Place) -> Path:
    """A folder of nobody's, with files for everybody and for root alone."""
    folder = place.path / "changing"
    content = {"files/1": "content", "files/2": "secret", "a/inner": "content", "b/inner": "secret"}
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644 if text == "content" else 0o600)
    (folder / "a/deep").mkdir()
    (folder / "b/deep").mkdir()
    inside = Path(f"{folder}/{folder}/files/2")  # what the jail's path leads to: ours, not root's
    inside.parent.mkdir(parents=True)
    inside.write_text("content")
    (folder / "link").symlink_to(folder / "files/1")
    for path in (folder, folder / "a", folder / "b"):
        os.chown(path, NOBODY, NOBODY)
    return folder


OPENS = 4001
FEW_DESCRIPTORS = 12
"""A supervisor of which nothing is wanted has 10."""


@pytest.mark.parametrize("mode", ["path", "how", "link", "exchange", "jail", "users"])
def test_what_changes_meanwhile(build: Build, run: Runner, changing: Path, mode: str) -> None:
    """Between a look at a path and an open of it there is nothing to be gained."""
    if mode == "jail":  # outside of it the same path is one that everybody may read
        (changing / "files/2").write_text("secret")
        (changing / "files/2").chmod(0o644)
    argv = [build("deputy"), mode, str(changing), str(OPENS)]
    shim = run.supervised(argv, "--engine", "notify", user=None)
    assert shim.status == 0, shim.err
    shared, secret, odd = map(int, shim.out.split())
    assert (secret, odd) == (0, 0)
    assert shared > 0
    assert rows(shim.trace, "SELECT kind FROM blind_spot") == []


def test_id_of_another(build: Build, run: Runner, changing: Path) -> None:
    """A call of a thread that is gone is not taken for one of who has its ID now."""
    file = changing / "files/2"
    os.chown(file, 1, 1)
    shim = run.supervised(
        [build("deputy"), "reuse", str(changing), "211"], "--engine", "notify", user=None
    )
    assert shim.status == 0, shim.err
    _, truncated, odd, went_well = map(int, shim.out.split())
    require("set_tid", None if went_well else "IDs of processes cannot be chosen here")
    assert (truncated, odd) == (0, 0)
    assert file.read_text() == "secret"


def test_supervisors_keep_no_descriptors(run: Runner, place: Place) -> None:
    folder = place.path / "stage"
    _set_up(folder)
    scene = ["/usr/bin/python3", str(SCENES), "descriptors", "noatime", str(folder)]
    process = subprocess.Popen(
        run.command(scene, "--engine", "notify", user=None), cwd=REPOSITORY, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(3):
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
    # One may be about to close what it has handed over.
    wait_until(lambda: _held(process.pid) and max(_held(process.pid)) < FEW_DESCRIPTORS)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0


def _held(guard: int) -> list[int]:
    """How many descriptors each supervisor has."""
    return [
        len(os.listdir(f"/proc/{pid}/fd"))
        for pid in children(guard)
        if role_of(pid).startswith("supervisor of ")
    ]


IN_NAMESPACE = f"""
import ctypes, os, sys
os.setgroups([{A}])
asks, asked = os.pipe()
done, do = os.pipe()
child = os.fork()
if child == 0:
    if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
        os._exit(77)
    os.write(asked, b"x")
    os.read(done, 1)
    os.execv(sys.argv[1], sys.argv[1:])
os.read(asks, 1)
for kind in ("uid", "gid"):
    with open(f"/proc/{{child}}/{{kind}}_map", "w") as file:
        file.write("0 0 1\\n{NOBODY} {NOBODY} 1\\n")
os.write(do, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
AS_NOBODY = """
import errno, os, sys
os.setgroups([65534])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for path in sys.argv[1:]:
    try:
        print(os.read(os.open(path, os.O_RDONLY | os.O_NOATIME), 9))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_a_group_without_a_number(run: Runner, place: Place) -> None:
    """A supervisor's group that its user namespace lacks looks like nobody's, and is not his."""
    folder = place.path / "stage"
    _set_up(folder)
    python = "/usr/bin/python3"
    argv = [python, "-c", AS_NOBODY, str(folder / "of-a"), str(folder / "denied-a")]
    alone = run.native([python, "-c", IN_NAMESPACE, *argv], user=0)
    require("userns", "no user namespaces here" if alone.returncode == 77 else None)
    assert (alone.returncode, alone.stdout) == (0, "EACCES\nEPERM\n"), alone.stderr
    command = run.command(argv, "--engine", "notify", user=None)
    shim = run.native([python, "-c", IN_NAMESPACE, *command], user=0)
    assert (shim.returncode, shim.stdout) == (0, "EACCES\nEPERM\n"), shim.stderr
    assert set(run.last().events("reason")) == {
        ("not rescued: flagshim cannot be the thread's user",)
    }


HALF_WAY = """
import os
from flagshim.engines.notify import standing
me = standing.read_standing(os.getpid())
who = standing.Impersonation()
somebody = me._replace(euid=1, fsuid=2, egid=1, fsgid=1, groups=b"5 ", effective=0)
real = standing.set_capabilities
standing.set_capabilities = lambda *_: (_ for _ in ()).throw(OSError(1, "no"))
try:
    who.become(somebody, True)
except standing.CannotBe:
    standing.set_capabilities = real
    who.come_back()
for effective in (0, me.effective):
    now = standing.read_standing(os.getpid())
    assert (now.euid, now.fsuid, now.effective) == (me.euid, me.fsuid, me.effective), now
    who.become(me._replace(effective=effective), True)
    now = standing.read_standing(os.getpid())
    assert (now.ids, now.effective) == (me.ids, effective), now
    who.come_back()
standing.set_capabilities = lambda *_: (_ for _ in ()).throw(OSError(1, "no"))
try:
    who.become(somebody, True)
except standing.CannotBe:
    who.come_back()  # does not: better none than somebody else
"""


def test_half_somebody_else() -> None:
    result = subprocess.run(
        [*flagshim_command()[:1], "-c", HALF_WAY], capture_output=True, text=True, check=False,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (1, "cannot be ourselves again: no\n")
