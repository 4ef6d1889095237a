"""The wheel's base install is the client: it works in a new environment that has neither torch nor numba."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.e2e.server_process import server

REPOSITORY = Path(__file__).parent.parent
CLIENT_ALONE = Path(__file__).with_name("client_alone.py")

# Building and installing fetch packages from an index.
pytestmark = pytest.mark.timeout(400)


def _run(*command: str | Path, cwd: Path) -> str:
    run = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=REPOSITORY)
    (built,) = folder.glob("laser_stack-*.whl")
    return built


def test_packages_lie_at_top_level(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top_level = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert top_level == {
        "laser_client",
        "loadtest",
        "ranker",
        "seqcore",
        "seqvault",
        "seqvault_server",
        "servicekit",
    }
    for generated in ("pb2.py", "pb2.pyi", "pb2_grpc.py", "pb2_grpc.pyi"):
        assert f"seqvault/v1/seqvault_{generated}" in names
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


def test_client_needs_the_base_install_alone(wheel: Path, tmp_path: Path) -> None:
    _run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=tmp_path)
    installed = _run(python, "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    assert not [line for line in installed.splitlines() if line.startswith(("numba", "torch", "rocksdict", "lmdb"))]
    with server(tmp_path / "data") as store:
        # Isolated (-I): neither the working directory nor PYTHONPATH can lend it the checkout.
        assert _run(python, "-I", CLIENT_ALONE, store.target, cwd=tmp_path).splitlines()[-1] == "ok"
