"""SIGTERM under load: what was accepted is answered, what comes later is told to go elsewhere."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import grpc
from harken.v1 import encoder_pb2 as pb
from support.calls import different, ids, stub
from support.server import running_server

CALLERS = 16


@dataclass(frozen=True)
class Drained:
    """How calls ended before and after the signal, the exit code, and how long it took from the signal to the exit."""

    ends: Counter[str]
    exit_code: int
    took_s: float

    @property
    def lost(self) -> int:
        """Calls that got neither an answer nor a word on where to go."""
        return self.ends.total() - self.ends["OK"] - self.ends["UNAVAILABLE"]


def drain(models: Path, state: Path, delay_s: float) -> Drained:
    """End a server in the middle of its work."""
    ends: Counter[str] = Counter()
    gone = Event()
    with running_server(models, "--drain-delay-s", str(delay_s), "--state-dir", str(state)) as server:
        encoder = stub(server.target)
        sequences = different(200, 60)

        def ask(number: int) -> None:
            while not gone.is_set():
                number += 1
                batch = [sequences[(number + index) % len(sequences)] for index in range(4)]
                try:
                    encoder.Encode(pb.EncodeRequest(inputs=ids(*batch)), timeout=30)
                    ends["OK"] += 1
                except grpc.RpcError as error:
                    ends[error.code().name] += 1
                    time.sleep(0.01)

        callers = [Thread(target=ask, args=(17 * number,)) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        time.sleep(0.5)
        signalled_s = time.monotonic()
        server.terminate()
        exit_code = server.wait_exit()
        took_s = time.monotonic() - signalled_s
        gone.set()
        for caller in callers:
            caller.join()
    return Drained(ends, exit_code, took_s)
