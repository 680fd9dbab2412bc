"""What harken's own client gets, for the others to be compared with."""

import numpy as np
import numpy.typing as npt
import pytest
from harken_client import Client
from support.contract import ROWS, TEXTS
from support.server import RunningServer


@pytest.fixture(scope="session")
def expected(minilm_server: RunningServer) -> dict[str, list[npt.NDArray[np.float32]]]:
    """What harken's own client gets, one call at a time."""
    with Client(minilm_server.target) as client:
        return {
            "rows": [client.encode([row])[0] for row in ROWS],
            "texts": [client.encode([text])[0] for text in TEXTS],
        }
