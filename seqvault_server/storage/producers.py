"""Exactly-once appends: what each producer has sent, so that a repeated call is answered and not applied again.

Per producer the newest sequence and a window of 64 below it: for each the LSN of the ack and a digest of the content.
The same facts are in the log record of the append itself, so they are durable exactly when the rows are; when a log
generation is dropped, the windows are logged again first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from seqvault_server.storage.errors import InvalidAppend, SequenceTooOld

WINDOW: Final = 64
FORGET_AFTER_MS: Final = 7 * 24 * 3600 * 1000


@dataclass(slots=True)
class _Producer:
    newest: int = 0
    seen_ms: int = 0
    acks: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Sequence -> LSN of the ack and digest."""


class Producers:
    """All producers heard of in the last 7 days. Owner's thread only."""

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}

    def __len__(self) -> int:
        return len(self._producers)

    def seen(self, producer: int, sequence: int, digest: bytes) -> int | None:
        """The LSN that acked this call before, None if it is new.

        Raises: SequenceTooOld below the window; InvalidAppend if the sequence was used for other content.
        """
        known = self._producers.get(producer)
        if known is None:
            return None
        ack = known.acks.get(sequence)
        if ack is not None:
            check_same(ack[1], digest)
            return ack[0]
        if sequence <= known.newest - WINDOW:
            raise SequenceTooOld(sequence, known.newest - WINDOW + 1)
        return None

    def record(self, producer: int, sequence: int, digest: bytes, lsn: int, now_ms: int) -> None:
        """Remembers an ack."""
        known = self._producers.setdefault(producer, _Producer())
        known.acks[sequence] = (lsn, digest)
        known.seen_ms = max(known.seen_ms, now_ms)
        if sequence > known.newest:
            known.newest = sequence
            for old in [s for s in known.acks if s <= sequence - WINDOW]:
                del known.acks[old]

    def forget_idle(self, now_ms: int) -> int:
        """Drops producers idle for 7 days; returns how many."""
        idle = [number for number, known in self._producers.items() if now_ms - known.seen_ms > FORGET_AFTER_MS]
        for number in idle:
            del self._producers[number]
        return len(idle)

    def entries(self) -> Iterator[tuple[int, int, bytes, int, int]]:
        """(producer, sequence, digest, LSN, time last seen) of everything remembered."""
        for number, known in self._producers.items():
            for sequence, (lsn, digest) in known.acks.items():
                yield number, sequence, digest, lsn, known.seen_ms


def check_same(known: bytes, digest: bytes) -> None:
    """Raises: InvalidAppend if a sequence comes again with other content."""
    if known != digest:
        raise InvalidAppend("sequence", "SEQUENCE_REUSED", "this sequence was used before, with other content")
