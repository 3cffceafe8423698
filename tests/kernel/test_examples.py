"""Everything in examples/, tried or parsed by the tool it is for."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import flagshim
from flagshim.rules import load_rules
from tests.kernel.conftest import SECONDS, Place, Runner
from tests.support import REPOSITORY, require, rows, wait_until
from tests.unit.collector import collecting

EXAMPLES = REPOSITORY / "examples"
COMMAND = Path(sys.executable).with_name("flagshim")


def need(program: str, package: str) -> None:
    require("examples", None if shutil.which(program) else f"no {program} ({package})")


def test_none_is_forgotten() -> None:
    """A new example is to be tried here, too."""
    files = subprocess.check_output(["git", "ls-files", "examples"], cwd=REPOSITORY, text=True)
    here = Path(__file__).read_text()
    for file in map(Path, files.splitlines()):
        assert file.suffix == ".toml" or file.name == "README.md" or f'"{file.name}"' in here
        assert file.name in (EXAMPLES / "README.md").read_text() or file.parent != EXAMPLES


# --- rule files ---------------------------------------------------------------------------------

RULES = [
    ("backup.toml", "tar"),
    ("fuse-overlayfs.toml", "fuse-overlayfs"),
    ("database.toml", "mongod"),
]


@pytest.mark.parametrize(("file", "program"), RULES)
def test_rule_file(file: str, program: str, place: Place, run: Runner) -> None:
    """A program of that name, and one of another, on a file it does not own."""
    copy = place.path / program
    shutil.copy(shutil.which("dd") or "", copy)
    # Where the files of a database are, for nobody but this test.
    script = 'mount --bind $0 /var/lib/misc && exec "$@"'
    as_nobody = ["setpriv", "--reuid", "65534", "--clear-groups"]
    dd = ["iflag=noatime", "if=/var/lib/misc/file", "status=none"]
    inside = ["unshare", "-m", "sh", "-c", script, str(place.path), *as_nobody]
    rules = ("--rules", str(EXAMPLES / file))
    good = run.supervised([*inside, str(copy), *dd], *rules, user=None)
    assert (good.status, good.out) == (0, "content\n"), good.err
    assert good.events("rule, decision") == [(load_rules(EXAMPLES / file)[0].name, "cleared")]
    other = place.path / "another"
    copy.rename(other)
    bad = run.supervised([*inside, str(other), *dd], *rules, user=None)
    assert "Operation not permitted" in bad.err


def test_backup_program(place: Place, run: Runner) -> None:
    argv = ["tar", "--atime-preserve=system", "-cf", "-", "file"]
    shim = run.supervised(argv, "--rules", str(EXAMPLES / "backup.toml"), cwd=place.path)
    assert (shim.status, shim.events("rule, decision")) == (0, [("backup", "cleared")]), shim.err


def test_direct_io(place: Place, run: Runner) -> None:
    argv = ["dd", "oflag=sync", "if=/dev/null", f"of={place.path}/out", "status=none"]
    rules = ("--rules", str(EXAMPLES / "direct-io.toml"))
    assert run.supervised(argv, *rules, user=None).events("rule") == [("no-sync",)]


def test_qemu_rules() -> None:
    (rule,) = load_rules(EXAMPLES / "qemu.toml")
    assert (rule.paths, rule.programs[0]) == (("/nix/store/**",), "qemu-system-*")


# --- NixOS --------------------------------------------------------------------------------------

OVERLAY = EXAMPLES / "nixos" / "overlay.nix"


def nix(expression: str, folder: Path) -> object:
    need("nix-instantiate", "nix-bin")
    environment = {
        **os.environ, "HOME": str(folder),
        "NIX_STORE_DIR": str(folder / "store"), "NIX_STATE_DIR": str(folder / "state"),
    }  # fmt: skip
    command = ["nix-instantiate", "--eval", "--strict", "--json", "-E", expression]
    return json.loads(subprocess.check_output(command, env=environment))


def test_overlay_parses() -> None:
    need("nix-instantiate", "nix-bin")
    subprocess.run(["nix-instantiate", "--parse", OVERLAY], check=True, capture_output=True)


def test_packages_of_the_overlay(tmp_path: Path) -> None:
    """The overlay evaluates, and knows our version and what we depend on."""
    value = nix(
        f"""
        let
          final = {{
            lib = {{ getLib = p: p; licenses.gpl2Only = "GPL-2.0-only"; }};
            libseccomp = "/libseccomp";
          }};
          python = {{
            buildPythonPackage = package: package; fetchPypi = source: source;
            setuptools = "setuptools"; click = "click"; python-ptrace = "python-ptrace";
            tabulate = "tabulate"; pyseccomp = "pyseccomp";
          }};
          overlay = import {OVERLAY} final {{ pythonPackagesExtensions = [ ]; }};
          packages = (builtins.head overlay.pythonPackagesExtensions) python {{ }};
        in {{
          inherit (packages.flagshim) version dependencies;
          source = toString packages.flagshim.src;
          patch = packages.pyseccomp.postPatch;
        }}""",
        tmp_path,
    )
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert value["version"] == flagshim.__version__
    assert value["dependencies"] == [re.split("[><=]", name)[0] for name in project["dependencies"]]
    assert value["source"] == str(REPOSITORY)
    assert "/libseccomp/lib/libseccomp.so.2" in value["patch"]


def test_script_of_the_overlay(tmp_path: Path) -> None:
    """What it builds, built by hand: QEMU's emulators are replaced, and run."""
    need("qemu-system-x86_64", "qemu-system-x86")
    for name in ("qemu/bin", "out/bin", "flagshim/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "flagshim/bin/flagshim").symlink_to(COMMAND)
    for name in ("qemu-system-x86_64", "qemu-img"):
        real = tmp_path / "qemu/bin" / name
        real.symlink_to(shutil.which("qemu-system-x86_64") or "")
        (tmp_path / "out/bin" / name).symlink_to(real)
    script = nix(
        f"""
        ((import {OVERLAY})
          {{ runtimeShell = "/bin/sh"; flagshim = "{tmp_path}/flagshim"; symlinkJoin = x: x; }}
          {{ qemu = {{ outPath = "{tmp_path}/qemu"; version = "1"; meta = {{ }}; }}; }}
        ).qemu-flagshim.postBuild""",
        tmp_path,
    )
    subprocess.run(
        ["bash", "-e", "-c", script], check=True, env={**os.environ, "out": str(tmp_path / "out")}
    )
    assert (tmp_path / "out/bin/qemu-img").is_symlink()
    for environment, trace in (
        ({"TMPDIR": str(tmp_path)}, "flagshim-qemu.db"),
        ({"FLAGSHIM_TRACE": str(tmp_path / "mine.db")}, "mine.db"),
    ):
        out = subprocess.check_output(
            [tmp_path / "out/bin/qemu-system-x86_64", "-version"], text=True,
            env={"PATH": os.environ["PATH"], **environment},
        )  # fmt: skip
        assert out.startswith("QEMU emulator version")
        (command,) = rows(tmp_path / trace, "SELECT command FROM session")[0]
        assert json.loads(command) == [f"{tmp_path}/qemu/bin/qemu-system-x86_64", "-version"]


# --- libvirt ------------------------------------------------------------------------------------


def test_domain() -> None:
    need("virt-xml-validate", "libvirt-clients")
    need("xmllint", "libxml2-utils")  # which it calls
    result = subprocess.run(
        ["virt-xml-validate", EXAMPLES / "libvirt" / "domain.xml", "domain"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def qmp(path: Path, *commands: str) -> list[dict]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(path))
        with connection.makefile("rw") as stream:
            answers = [json.loads(stream.readline())]
            for command in commands:
                stream.write(json.dumps({"execute": command}) + "\n")
                stream.flush()
                answers.append(json.loads(stream.readline()))
    return answers


def test_emulator(tmp_path: Path) -> None:
    """libvirt first asks an emulator what it can do, in a daemon that it finds by a pidfile."""
    need("qemu-system-x86_64", "qemu-system-x86")
    emulator, traces = tmp_path / "qemu-flagshim", tmp_path / "traces"
    subprocess.run(
        [EXAMPLES / "libvirt" / "make-emulator", emulator, traces, "root:root"], check=True,
        env={**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}, capture_output=True,
    )  # fmt: skip
    assert "libvirt/make-emulator" in (EXAMPLES / "libvirt" / "make-emulator").read_text()
    probe = ["-S", "-no-user-config", "-nodefaults", "-nographic", "-daemonize",
             "-machine", "none,accel=tcg"]  # fmt: skip
    monitor, pidfile = tmp_path / "monitor", tmp_path / "pid"
    subprocess.run(
        [emulator, *probe, "-qmp", f"unix:{monitor},server=on,wait=off", "-pidfile", pidfile],
        check=True, timeout=SECONDS,
    )  # fmt: skip
    pid = int(pidfile.read_text())
    assert Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")
    greeting, _, version, _ = qmp(monitor, "qmp_capabilities", "query-version", "quit")
    assert version["return"]["qemu"] == greeting["QMP"]["version"]["qemu"]
    trace = traces / "libvirt.db"
    wait_until(lambda: rows(trace, "SELECT exit_status FROM session") == [(0,)])


# --- systemd ------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with the flagshim of this tree."""
    for name in ("vm@.service", "flagshim-export.service", "flagshim-export.timer"):
        text = (EXAMPLES / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/local/bin/flagshim", str(COMMAND)))
    shutil.copy(tmp_path / "vm@.service", tmp_path / "vm@one.service")
    return tmp_path


def test_units_verify(units: Path) -> None:
    need("systemd-analyze", "systemd")
    names = ["vm@one.service", "flagshim-export.service", "flagshim-export.timer"]
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=yes", *(units / name for name in names)],
        capture_output=True, text=True, check=False, cwd=units,
        env={**os.environ, "MANPATH": str(REPOSITORY / "docs" / "man")},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


def commands(unit: Path, **values: str) -> list[list[str]]:
    """What ExecStart= runs, as systemd.service(5) reads it."""
    text = unit.read_text().replace("\\\n", " ").replace("%i", "one")
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    return [shlex.split(line) for line in re.findall("^ExecStart=(.*)", text, re.M)]


def test_vm_service(units: Path) -> None:
    need("qemu-system-x86_64", "qemu-system-x86")
    (command,) = commands(units / "vm@one.service", STATE_DIRECTORY=str(units))
    with open(units / "one.qcow2", "wb") as image:
        image.truncate(1 << 20)
    assert "local,id=store,path=/nix/store,security_model=none,readonly=on" in command
    command = [word.replace("/nix/store", str(units)) for word in command]
    service = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        comm = Path(f"/proc/{service.pid}/comm")
        wait_until(lambda: comm.read_text().startswith("qemu-system"))  # it is QEMU itself
        assert service.poll() is None
    finally:
        service.send_signal(signal.SIGTERM)
        status = service.wait(SECONDS)
    assert status in (0, -signal.SIGTERM)  # the latter before it has set a handler up
    wait_until(lambda: rows(units / "one.db", "SELECT exit_status FROM session") == [(status,)])


def test_export_service(units: Path, place: Place) -> None:
    with collecting() as collector:
        merge, export = commands(
            units / "flagshim-export.service", STATE_DIRECTORY=str(units), COLLECTOR=collector.url
        )
        trace = place.path / "one.db"
        dd = ["dd", "iflag=noatime", f"if={place.file}", "status=none"]
        flagshim.run(dd, user="nobody", trace=trace, capture_output=True)
        assert "/var/lib/vm/*.db" in merge[-1]
        merge[-1] = merge[-1].replace("/var/lib/vm", str(place.path))
        for command in (merge, export):
            subprocess.run(command, check=True, capture_output=True)
        events = [record.event_name for _, _, record in collector.records()]
    assert events == ["flagshim.session", "flagshim.open"]


# --- CI jobs ------------------------------------------------------------------------------------


@pytest.fixture
def runner(place: Place, tmp_path: Path) -> Iterator[Callable[[list[str]], None]]:
    """Runs the lines of a job as a runner would, but for what installs packages."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "flagshim").symlink_to(COMMAND)
    for name in ("sudo", "apt-get", "pipx"):
        (tools / name).symlink_to("/bin/true")
    boot = tmp_path / "boot.sh"
    dd = f"dd iflag=noatime if={place.file} status=none"
    boot.write_text(f"#!/bin/sh\nexec setpriv --reuid 65534 --clear-groups {dd}\n")
    boot.chmod(0o755)
    home = {"HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}"}

    def run(script: list[str], **environment: str) -> None:
        command = ["bash", "-e", "-o", "pipefail", "-c", "\n".join(script)]
        subprocess.run(command, check=True, cwd=tmp_path, env={**home, **environment})

    yield run
    assert rows(tmp_path / "flagshim.db", "SELECT decision FROM event") == [("cleared",)]
    assert (tmp_path / "flagshim.parquet").read_bytes()[:4] == b"PAR1"
    with contextlib.suppress(FileNotFoundError):
        assert "CLEARED" in (tmp_path / "summary").read_text()


def schema_of(name: str, file: Path) -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([tool, "--builtin-schema", f"vendor.{name}", file], check=True)


def test_github(runner: Callable, tmp_path: Path) -> None:
    file = EXAMPLES / "ci" / "github.yml"
    schema_of("github-workflows", file)
    steps = YAML(typ="safe").load(file)["jobs"]["boot"]["steps"]
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_RUN_ID": "7", "GITHUB_JOB": "boot"}
    summary = str(tmp_path / "summary")
    for step in steps:
        if "run" in step:
            runner([step["run"]], GITHUB_STEP_SUMMARY=summary, **environment)
    assert rows(tmp_path / "flagshim.db", "SELECT name, value FROM label ORDER BY name") == [
        ("cicd.pipeline.run.id", "7"),
        ("cicd.pipeline.task.name", "boot"),
    ]
    (upload,) = (step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert all((tmp_path / name).exists() for name in upload["with"]["path"].split())


def test_gitlab(runner: Callable, tmp_path: Path) -> None:
    file = EXAMPLES / "ci" / "gitlab.yml"
    schema_of("gitlab-ci", file)
    job = YAML(typ="safe").load(file)["boot"]
    runner([*job["before_script"], *job["script"]], GITLAB_CI="true", CI_JOB_NAME="boot")
    runner(job["after_script"])
    assert all((tmp_path / name).exists() for name in job["artifacts"]["paths"])
