"""Side-info: what is true of an item, stored once per item. Knows neither gRPC nor asyncio nor protobuf.

Start with `store` (the steps of a put and a read), then `item_file` (the truth, in LMDB) and `item_table` (what reads see).
"""
