"""The committed stubs are what the pinned generator makes of the committed protocols, byte for byte."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROTO = Path(__file__).parent.parent / "proto"


def _stubs(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*_pb2*.py*") if path.suffix != ".pyc"
    }


# The first run installs the generator.
@pytest.mark.timeout(300)
def test_stubs_match_the_protocols(tmp_path: Path) -> None:
    run = subprocess.run(
        [PROTO / "generate", tmp_path],
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    committed, fresh = _stubs(PROTO), _stubs(tmp_path)
    assert len(fresh) == 4 * len(list(PROTO.glob("*/v1/*.proto")))
    assert committed.keys() == fresh.keys()
    stale = [name for name in fresh if committed[name] != fresh[name]]
    assert not stale, f"run `make protos` and commit: {stale}"
