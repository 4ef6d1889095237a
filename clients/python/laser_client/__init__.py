"""The smart client of SeqVault: deadlines, safe retries, hedged reads, histories as numpy columns.

Start with `client` (the calls), then `decode` (a reply becomes a `History`) and `wire` (messages and columns, shared
with the server). `errors` lists what can go wrong by what to do about it; `sync` wraps the client for plain threads.
"""
