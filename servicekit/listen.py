"""Where a server listens, and the gRPC server that does."""

from dataclasses import dataclass
from ipaddress import ip_address

import grpc
import grpc.aio

from servicekit.service import HARD_LIMIT_FACTOR


class BindError(OSError):
    """The address cannot be bound: taken, not this machine's, or not permitted."""


@dataclass(frozen=True, kw_only=True)
class ListenConfig:
    """Addresses, limits and the end of a server process."""

    host: str = "127.0.0.1"
    """Address of the gRPC port. Traffic is not encrypted, so off loopback it needs `allow_insecure_off_loopback`."""
    port: int = 0
    """gRPC port; 0 takes a free one, which the `ready` line names."""
    metrics_host: str = "127.0.0.1"
    """Address of the HTTP port with /metrics and /healthz; the rule of `host` holds for it too."""
    metrics_port: int = 0
    """HTTP port; 0 takes a free one."""
    allow_insecure_off_loopback: bool = False
    """Lets anyone who reaches the address read and write everything: only inside a network that is closed otherwise."""
    max_request_bytes: int = 4 << 20
    """Larger requests are refused by name, and those above four times as much by the transport, without details. Each
    request in flight can hold this much memory."""
    drain_ms: int = 10_000
    """How long calls in flight may go on after SIGTERM; then they are cancelled. Longer than the longest deadline of a
    client serves nobody; the supervisor must wait longer before it kills."""

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 0xFFFF:
                raise ValueError(f"{name} must be 0 to 65535")
        for name in ("max_request_bytes", "drain_ms"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("host", "metrics_host"):
            if not self.allow_insecure_off_loopback and not _is_loopback(getattr(self, name)):
                raise ValueError(f"{name} is off loopback; allow_insecure_off_loopback permits it, without encryption")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def grpc_server(config: ListenConfig) -> grpc.aio.Server:
    """Neither bound nor started; belongs to the running loop."""
    return grpc.aio.server(
        options=[
            # One process owns the port: a second one must fail, not share it.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", HARD_LIMIT_FACTOR * config.max_request_bytes),
            # The size of replies is the service's own business.
            ("grpc.max_send_message_length", -1),
            # Peers that vanished are noticed within a minute and a half.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Clients may ping every 10 s, calls or not; half of that leaves room for jitter.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
    )


def bind(server: grpc.aio.Server, config: ListenConfig) -> int:
    """The port, chosen by the kernel if the config says 0.

    Raises:
        BindError: see there.
    """
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.port}"
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise BindError(f"cannot listen on {address}") from error
