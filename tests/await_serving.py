"""`python await_serving.py PID`: returns when a TCP port of that process, or of a child, answers gRPC health with SERVING.

The ports are found in /proc, so that a document need not tell a test where its server listens.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

DEADLINE_S = 60.0
_LISTEN = "0A"


def _process_tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _process_tree(int(child))


def _listening_ports(pid: int) -> set[int]:
    sockets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTEN and f"socket:[{row[9]}]" in sockets}


def _is_serving(port: int) -> bool:
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def await_serving(pid: int) -> None:
    """Raises:
    ProcessLookupError: the process ended before it served.
    TimeoutError: it did not serve within the deadline.
    """
    give_up = time.monotonic() + DEADLINE_S
    while time.monotonic() < give_up:
        try:
            ports = {port for process in _process_tree(pid) for port in _listening_ports(process)}
        except OSError as error:
            if not Path(f"/proc/{pid}").exists():
                raise ProcessLookupError(f"server {pid} ended before it served") from error
            continue  # a descriptor or a child went away between two looks
        if any(_is_serving(port) for port in ports):
            return
        time.sleep(0.05)
    raise TimeoutError(f"server {pid} does not serve after {DEADLINE_S:.0f} s")


if __name__ == "__main__":
    await_serving(int(sys.argv[1]))
