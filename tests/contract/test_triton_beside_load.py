"""tritonclient in one process with `harken load --protocol oip`: both have the messages of the protocol."""

import subprocess
import sys

import pytest
from support.contract import BUILD

OURS = "from harken_client.load import oip; oip.message_class('ModelInferRequest')"
THEIRS = "from tritonclient.grpc import service_pb2; service_pb2.ModelInferRequest()"


@pytest.mark.parametrize("steps", [[OURS, THEIRS], [THEIRS, OURS]])
def test_it_loads_before_and_after(steps: list[str]) -> None:
    # tritonclient asks for an older protobuf than harken's. It works with ours, so its own comes last on the path.
    (packages,) = (BUILD / "triton" / "lib").glob("python3*/site-packages")
    script = "; ".join(["import sys", f"sys.path.append({str(packages)!r})", *steps])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
