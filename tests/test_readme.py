"""Every command that the README and the documents show is run, in order, one shell and one empty folder a document."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.documented_commands import read_commands

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]
NOT_RUN = 0
"""Blocks of all documents that carry a reason not to be run: adding one is a decision, so it changes this number."""

HEALTH_SERVER = """\
import signal, sys, threading
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2_grpc

ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
server = grpc.server(futures.ThreadPoolExecutor(1))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port("localhost:0")
server.start()
ended.wait()
server.stop(None).wait()
print("drained", flush=True)
sys.exit(int(sys.argv[1]))
"""


def run_commands(markdown: str, folder: Path) -> tuple[int, str]:
    """Exit status and transcript of a document's commands, run by bash in `folder`. No process outlives the call."""
    script, transcript = folder / ".commands", folder / ".transcript"
    script.write_text(read_commands(markdown).script())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with transcript.open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-v", script],
            cwd=folder,
            env=os.environ | {"PATH": path, "HOME": str(folder), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait()
        finally:
            # A server that a failed script left behind lives in the shell's process group.
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    return status, transcript.read_text()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_commands_of_the_documents_work(document: Path, tmp_path: Path) -> None:
    status, transcript = run_commands(document.read_text(), tmp_path)
    assert status == 0, transcript


def test_blocks_that_do_not_run_are_counted() -> None:
    reasons = [(path.name, reason) for path in DOCUMENTS for reason in read_commands(path.read_text()).reasons]
    assert len(reasons) == NOT_RUN, reasons


def test_commands_are_told_from_output() -> None:
    commands = read_commands(
        "```console\n$ make test\n$ echo a \\\n    b\na b\n$ cat <<END\n> text\n> END\ntext\n```\n"
        "```python\nprint()\n```\n"
        "<!-- not run: needs a second machine -->\n```sh\nssh other\n```\n"
        "```sh\necho c\n```\n"
    )
    assert commands.lines == ("echo a \\", "    b", "cat <<END", "text", "END", "echo c")
    assert commands.reasons == ("needs a second machine",)


def test_a_block_without_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say why"):
        read_commands("<!-- not run: -->\n```sh\ntrue\n```\n")


def test_a_fence_that_would_be_overlooked_is_refused() -> None:
    with pytest.raises(ValueError, match="line"):
        read_commands("- item\n  ```sh\n  true\n  ```\n")


def test_a_failing_command_ends_the_document(tmp_path: Path) -> None:
    status, transcript = run_commands("```sh\necho one\nfalse\necho two\n```\n", tmp_path)
    assert status == 1
    assert "one" in transcript
    assert "two" not in transcript


def test_commands_of_one_document_share_a_shell(tmp_path: Path) -> None:
    status, _ = run_commands(
        "```sh\nexport X=1\nmkdir d && cd d\n```\n```console\n$ test $X = 1; touch here\n```\n", tmp_path
    )
    assert status == 0
    assert (tmp_path / "d" / "here").exists()


@pytest.mark.parametrize("server_status", [0, 3])
def test_a_server_is_awaited_and_ended(tmp_path: Path, server_status: int) -> None:
    (tmp_path / "server.py").write_text(HEALTH_SERVER)
    status, transcript = run_commands(
        f"```console\n$ python server.py {server_status} &\n$ echo client\n```\n", tmp_path
    )
    assert status == server_status, transcript
    assert transcript.index("client\n") < transcript.index("drained\n")


def test_a_server_that_cannot_start_fails_the_document(tmp_path: Path) -> None:
    status, transcript = run_commands("```console\n$ python -c 'exit(3)' &\n$ echo client\n```\n", tmp_path)
    assert status == 1
    assert "ended before it served" in transcript
    assert "echo client" not in transcript
