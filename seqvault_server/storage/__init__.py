"""The engine: histories on disk, in DRAM and in the log. Knows neither gRPC nor asyncio nor protobuf.

Start with `shard` (the steps), then `place` and `index` (where a history lies), `read`, `tails`, `flush`, `recovery`.
"""
