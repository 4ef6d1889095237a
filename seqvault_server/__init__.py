"""SeqVault: the store of users' histories.

`storage` is the engine, made of steps; `vault`, `committer` and `background` run those steps on an event loop and a few
threads; `sideinfo` holds what is true of items; `service` speaks gRPC; `__main__` is the command line.
"""
