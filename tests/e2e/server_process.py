"""A real `seqvault serve` in a process of its own, on free ports."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SCHEMA_FILE: Final = ROOT / "examples" / "schema.yaml"
START_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """Running; `target` is its gRPC address."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """SIGKILL: nothing of the process runs any more when it returns."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status of the drained server."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START_TIMEOUT_S)


def child_environment() -> dict[str, str]:
    """The environment of this process, with the packages of this tree on the path."""
    paths = [str(ROOT), str(ROOT / "proto"), str(ROOT / "clients" / "python")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def server(
    data: Path, *, schema: Path = SCHEMA_FILE, environ: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Started, ready, and killed at exit if it still runs. Logs go to `<data>.log`."""
    command = [sys.executable, "-m", "seqvault_server", "serve", "--data", str(data), "--schema", str(schema)]
    with data.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--metrics-port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**child_environment(), **(environ or {})},
        )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        match = re.fullmatch(r"ready port=(\d+) metrics_port=(\d+)\n", ready)
        assert match, f"the server did not start: {data.with_suffix('.log').read_text()[-2000:]}"
        yield ServerProcess(process, int(match[1]), int(match[2]))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
