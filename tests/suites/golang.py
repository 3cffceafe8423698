"""Go's own tests of what is near the kernel: os, syscall, runtime, net and their neighbours."""

import json
import re
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from .suite import Suite, Verdicts

PACKAGES = ("bufio", "internal/poll", "io/...", "net", "os/...", "path/...", "runtime/...",
            "sync/...", "syscall/...")  # fmt: skip


class Go(Suite):
    """go test -short, as Go's own all.bash does it; a name is package:TestName."""

    name = "go"
    packages = ("golang-go", "gcc", "libc6-dev")
    seconds = 2400
    tracers = ("gdb", "strace", "lldb")
    declining = "runtime:TestDebugCall"  # skipUnderDebugger() in runtime/debug_test.go

    def version(self) -> str:
        said = subprocess.check_output(["go", "version"], text=True)
        return f"Go {said.split()[2].removeprefix('go')} ({' '.join(PACKAGES)})"

    def folder(self) -> Path:
        root = subprocess.check_output(["go", "env", "GOROOT"], text=True, cwd="/").strip()
        return Path(root) / "src"

    def environment(self) -> dict[str, str]:
        return {"GOCACHE": str(self.home / "cache"), "GOPROXY": "off"}

    def command(self, only: Collection[str]) -> Sequence[str]:
        tests = [name.partition(":") for name in only]
        packages = sorted({package for package, _, _ in tests})
        names = sorted({re.escape(test.partition("/")[0]) for _, _, test in tests})
        chosen = ("-run", f"^({'|'.join(names)})$") if only else ()
        how = ("-vet=off", "-short", "-count=1", "-json")
        return ("go", "test", *how, *chosen, *(packages or PACKAGES))

    def verdicts(self, said: str) -> Verdicts:
        found = {}
        for line in said.splitlines():
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if event.get("Action") in ("pass", "fail", "skip") and "Test" in event:
                found[f"{event['Package']}:{event['Test']}"] = event["Action"]
        return found
