"""A scripted server and a client of it."""

from collections.abc import AsyncIterator

import pytest

from laser_client.client import SeqVaultClient
from tests.laser_client.histories import SCHEMA
from tests.laser_client.peer import Peer, serve


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with serve(Peer(SCHEMA)) as peer:
        yield peer


@pytest.fixture
async def client(peer: Peer) -> AsyncIterator[SeqVaultClient]:
    async with SeqVaultClient(peer.target) as client:
        yield client
