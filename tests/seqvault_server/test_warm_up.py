"""No request waits for a kernel to be compiled."""

import subprocess
import sys
from pathlib import Path

from tests.e2e.server_process import child_environment


def test_serving_compiles_nothing_that_the_warm_up_did_not(tmp_path: Path) -> None:
    program = Path(__file__).with_name("serve_after_warm_up.py")
    ended = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "data")],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == []
