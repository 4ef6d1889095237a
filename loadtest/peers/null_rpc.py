"""A server that does nothing but reply: the floor under any read. `python -m loadtest.peers.null_rpc`.

The request is a little-endian u32, the reply so many bytes, made when its length is first asked for.
"""

import struct
from functools import cache

from loadtest.peers.shell import serve

METHOD = "loadtest.Null/Get"
LENGTH = struct.Struct("<I")


@cache
def _reply(request: bytes) -> bytes:
    return bytes(LENGTH.unpack(request)[0])


async def _get(request: bytes) -> bytes:
    return _reply(request)


async def _close() -> None:
    _reply.cache_clear()


if __name__ == "__main__":
    serve(lambda: {METHOD: _get}, close=_close)
