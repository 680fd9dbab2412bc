"""A server that can be made to fail in each way that an alert is about, and callers that keep it busy."""

import datetime
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnx
import trustme
from chaos.poison import poisoned
from harken.v1 import encoder_pb2 as pb
from onnx import TensorProto, helper, numpy_helper

from support.bundles import write_changed
from support.calls import ids
from support.hanging import HANGS, hanging_engine
from support.server import RunningServer, running_server

HUNGRY = 996
"""The token id on which the graph asks for more memory than there is."""

_NAME = "tiny"
_SLOWER = """
_hangs = engine.Engine.run

def slower(self, batch, outputs, halt=None):
    time.sleep(0.01)
    return _hangs(self, batch, outputs, halt)

engine.Engine.run = slower
"""


@dataclass(frozen=True)
class Faulty:
    """The server, and what provokes it."""

    server: RunningServer
    models: Path
    """Its folder of models, which it follows."""
    hangs: Path
    """While this file is there, a run that holds the id HANGS does not end."""
    fails: int
    """The token id on which the engine fails."""

    def hold(self) -> None:
        """From now on runs with HANGS do not end."""
        self.hangs.touch()

    def release(self) -> None:
        """All that hangs ends, and nothing hangs."""
        self.hangs.unlink(missing_ok=True)


@contextmanager
def faulty_server(tiny: Path, folder: Path, *options: str) -> Iterator[Faulty]:
    """A server with one lane over a poisoned copy of the bundle `tiny`.

    Each run takes 10 ms more than the model needs, as on a device that is far away: whatever the machine, batches are
    worth more than the padding in them, and a few callers ask for more than there is.
    """
    hungry, models = folder / "hungry", folder / "models"
    write_changed(tiny, hungry, _eats)
    fails = poisoned(hungry / _NAME / "1", models).fails
    environment, hangs = hanging_engine(folder)
    hangs.unlink()
    with (folder / "sitecustomize.py").open("a") as customize:
        customize.write(_SLOWER)
    lane = ("--lanes", "1", "--no-wide-lane", "--warmup-s", "1", "--watch-models-s", "0.3")
    with running_server(models, *lane, *options, environment=environment) as server:
        yield Faulty(server, models, hangs, fails)


@dataclass(frozen=True)
class Certificate:
    """A server's certificate and key in a folder, and who has signed it."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-certificate", str(self.folder / "server.pem"), "--tls-key", str(self.folder / "server.key"))

    def issue(self, lasts: datetime.timedelta) -> datetime.datetime:
        """Write a new one over the old one. Returns when it ends."""
        end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + lasts
        leaf = self.ca.issue_cert("localhost", not_after=end)
        (self.folder / "server.key").write_bytes(leaf.private_key_pem.bytes())
        (self.folder / "server.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        return end


@contextmanager
def callers(count: int, call: Callable[[int], object], pause_s: float = 0.0) -> Iterator[None]:
    """Meanwhile so many threads call, each again and again, `call(turn)`; an error that gRPC answers is an answer."""
    over = threading.Event()

    def go_on() -> None:
        turn = 0
        while not over.is_set():
            with suppress(grpc.RpcError):
                call(turn)
            turn += 1
            over.wait(pause_s)

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


def encode(*sequences: list[int]) -> pb.EncodeRequest:
    """A call with these sequences."""
    return pb.EncodeRequest(inputs=ids(*sequences))


def held() -> pb.EncodeRequest:
    """A call that lasts as long as the server is on hold."""
    return encode([5, HANGS])


def _eats(model: onnx.ModelProto) -> None:
    """On the id HUNGRY the graph asks for a tensor of 2**44 numbers; else that tensor is empty, and adds 0."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["ids_after_meal" if name == "input_ids" else name for name in node.input]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(HUNGRY, np.int64), "hungry"),
            numpy_helper.from_array(np.array([1 << 44], np.int64), "much"),
        ]
    )
    nodes = [
        helper.make_node("Equal", ["input_ids", "hungry"], ["is_hungry"]),
        helper.make_node("Cast", ["is_hungry"], ["hungry_as_int"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["hungry_as_int"], ["any_hungry"], keepdims=0),
        helper.make_node("Mul", ["any_hungry", "much"], ["meal_shape"]),
        helper.make_node("ConstantOfShape", ["meal_shape"], ["meal"]),
        helper.make_node("ReduceSum", ["meal"], ["eaten"], keepdims=0),
        helper.make_node("Cast", ["eaten"], ["eaten_as_int"], to=TensorProto.INT64),
        helper.make_node("Add", ["input_ids", "eaten_as_int"], ["ids_after_meal"]),
    ]
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
