"""`python -m tests.servicekit.echo_server`: the echo service as a process, configured by ECHO_* variables."""

import os

from servicekit.config import load
from servicekit.listen import ListenConfig
from servicekit.logs import configure
from servicekit.runner import run
from tests.servicekit.echo import EchoApplication

if __name__ == "__main__":
    configure()
    run(EchoApplication(), config=load(ListenConfig, environ=os.environ, prefix="ECHO"))
