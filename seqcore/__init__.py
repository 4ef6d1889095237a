"""What store and readers share: the schema, the bytes of a block, how a reply becomes columns.

Start with `schema` (which columns there are), then `format` (how a block lies on disk), `decode` (blocks to numpy
columns, the only reader) and `filters` (what a query keeps). `table` is the numba hash table of the servers.
"""
