"""What the log looks like. In processes of their own, for logging is a setting of the whole process."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import logging, structlog
from servicekit.logs import configure
configure()
log = structlog.get_logger("kit")
log.debug("hidden")
log.info("serving", port=7)
logging.getLogger("grpc._cython.cygrpc").warning("from %s", "core")
logging.getLogger("grpc").info("chatter")
try:
    {}["missing"]
except KeyError as error:
    log.error("failed", exc_info=error)
"""


def _command() -> list[str]:
    return [sys.executable, "-W", "error", "-c", PROGRAM]


def test_lines_are_json_and_carry_tracebacks() -> None:
    run = subprocess.run(_command(), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == ""
    serving, core, failed = [json.loads(line) for line in run.stderr.splitlines()]
    assert (serving["event"], serving["port"], serving["level"], serving["logger"]) == ("serving", 7, "info", "kit")
    assert serving["timestamp"].endswith("Z")
    assert (core["event"], core["level"], core["logger"]) == ("from core", "warning", "grpc._cython.cygrpc")
    assert failed["exception"][0]["exc_type"] == "KeyError"
    assert failed["exception"][0]["frames"]
    assert "locals" not in failed["exception"][0]["frames"][0]


def test_a_terminal_gets_text() -> None:
    leader, follower = pty.openpty()
    subprocess.run(_command(), cwd=REPOSITORY, stderr=follower, check=True)
    os.close(follower)
    shown = os.read(leader, 1 << 16)
    os.close(leader)
    assert b"serving" in shown
    assert b"KeyError" in shown
    assert b'{"' not in shown
