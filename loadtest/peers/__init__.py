"""What the store is compared with, each a server process of its own in the store's shell: aio, uvloop, raw handlers."""
