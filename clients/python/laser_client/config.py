"""Settings of the client, and the gRPC channel they make."""

import json
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio

from laser_client.errors import InvalidRequest

_SERVICE_CONFIG: Final = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)
"""A server that drains says NOT_SERVING and gets no further calls. No `timeout` here: gRPC fires it after 0-3 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds that a whole call may take, retries and pauses included, where the call itself names no other."""

    append_s: float = 5.0
    """An append may wait for a commit, and for the server's restart."""
    get_history_s: float = 1.0
    """Ten times what a cold read takes under load; a ranker passes what is left of its own deadline instead."""
    batch_get_history_s: float = 30.0
    """From the first message to the last: it runs on while the caller works on a message."""
    delete_user_s: float = 10.0
    """A deletion waits for the flush of that user, and overwrites its bytes."""
    put_items_s: float = 5.0
    get_items_s: float = 1.0
    get_schema_s: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How a client talks to the store."""

    timeouts: Timeouts = Timeouts()
    is_hedging: bool = True
    """Sends slow reads a second time (`hedge`). Switch off where every read costs the store dearly."""
    producer_id: int | None = None
    """For exactly-once appends; None: a random one for each client. Give one, and `first_sequence`, to go on after a crash:
    the same calls under the same numbers are then counted once. Never share it between clients that run at once."""
    first_sequence: int = 1
    """Number of the client's first append."""
    max_receive_bytes: int = 64 << 20
    """Largest reply taken. A history of 100,000 events is 1 to 3 MB."""
    credentials: grpc.ChannelCredentials | None = None
    """TLS; None: plain text."""

    def __post_init__(self) -> None:
        if self.producer_id is not None and not 0 < self.producer_id < 2**64:
            raise ValueError("producer_id must lie in 1..2**64-1: 0 would switch exactly-once off")
        if self.first_sequence < 1:
            raise ValueError("first_sequence must be at least 1")
        if self.max_receive_bytes < 1:
            raise ValueError("max_receive_bytes must be positive")


def open_channel(target: str, config: ClientConfig) -> grpc.aio.Channel:
    """`target`: host:port, or any gRPC name; calls go round robin over the addresses behind it."""
    if not target:
        raise InvalidRequest("an empty target names no server", field="target")
    options = [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.max_receive_message_length", config.max_receive_bytes),
        # A peer that died without a word is noticed after 15 s at most, instead of TCP's quarter of an hour.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # gRPC's own first pause after a refused connection is 1 s: longer than a read's whole deadline.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if config.credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, config.credentials, options=options)
