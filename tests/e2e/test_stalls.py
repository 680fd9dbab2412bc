"""An engine that does not end its runs, on real servers: who is told what, what health says, and that it recovers."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import numpy as np
import onnx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harken.v1 import encoder_pb2 as pb
from onnx import TensorProto, helper, numpy_helper
from support.bundles import write_changed
from support.calls import Refused, ids, refused_result, stub, vector
from support.hanging import HANGS, hanging_engine
from support.server import RunningServer, running_server
from support.web import call as http

LOOPS = 998
ONE_LANE = ("--lanes", "1", "--no-wide-lane", "--warmup-s", "1", "--stall-min-s", "4")


def loops_for_ever(model: onnx.ModelProto) -> None:
    """On the token id LOOPS the graph itself turns round and round; else it does what it did."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["ids_after_loop" if name == "input_ids" else name for name in node.input]
    constants = {"loops": LOOPS, "many": 1 << 60}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()
    )
    graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Identity", ["ids"], ["same_ids"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("ids", TensorProto.INT64, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same_ids", TensorProto.INT64, None),
        ],
    )
    nodes = [
        helper.make_node("Equal", ["input_ids", "loops"], ["is_loops"]),
        helper.make_node("Cast", ["is_loops"], ["loops_as_int"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["loops_as_int"], ["any_loops"], keepdims=0),
        helper.make_node("Mul", ["any_loops", "many"], ["turns"]),
        helper.make_node("Loop", ["turns", "always", "input_ids"], ["ids_after_loop"], body=body),
    ]
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])


@contextmanager
def watch(server: RunningServer, service: str) -> Iterator[list[str]]:
    """What health says of a service, as long as this holds."""
    seen: list[str] = []
    with grpc.insecure_channel(server.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        updates = stub.Watch(health_pb2.HealthCheckRequest(service=service))

        def follow() -> None:
            with suppress(grpc.RpcError):
                for update in updates:
                    seen.append(health_pb2.HealthCheckResponse.ServingStatus.Name(update.status))  # noqa: PERF401 - read while it grows

        thread = Thread(target=follow)
        thread.start()
        server.wait_until("the watch", lambda: bool(seen))
        yield seen
        updates.cancel()
        thread.join()


def call(server: RunningServer, *sequences: list[int]) -> list[np.ndarray | Refused]:
    results = stub(server.target).Encode(pb.EncodeRequest(inputs=ids(*sequences)), timeout=60).results
    return [refused_result(one) if one.HasField("error") else vector(one) for one in results]


def is_stalled(outcome: np.ndarray | Refused) -> bool:
    return isinstance(outcome, Refused) and (outcome.code, outcome.reason) == ("INTERNAL", "ENGINE_STALLED")


def test_a_run_that_the_runtime_can_end_is_ended_and_the_same_lane_goes_on(tiny_models: Path, tmp_path: Path) -> None:
    write_changed(tiny_models / "tiny" / "1", tmp_path, loops_for_ever)
    with running_server(tmp_path, *ONE_LANE) as server:
        (before,) = call(server, [5, 6])
        assert is_stalled(*call(server, [7, LOOPS]))
        (after,) = call(server, [5, 6])
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert server.total("harken_stalled_total", model="tiny") == 1
        assert server.total("harken_lanes_replaced_total") == 0
        assert server.total("harken_finished_total", outcome="failed") == 1
        assert server.total("harken_accepted_total") == server.total("harken_finished_total") == 3


def test_where_nothing_ends_a_run_health_says_so_and_another_thread_goes_on(tiny_models: Path, tmp_path: Path) -> None:
    environment, file = hanging_engine(tmp_path)
    with running_server(tiny_models, *ONE_LANE, environment=environment) as server:
        with watch(server, "") as whole, watch(server, "tiny/1") as model, ThreadPoolExecutor(2) as pool:
            hangs: Future[list[np.ndarray | Refused]] = pool.submit(call, server, [HANGS])
            server.wait_until("the stalled lane", lambda: server.total("harken_lanes", state="stalled") == 1)
            server.wait_until("the run to stall", lambda: "NOT_SERVING" in whole and "NOT_SERVING" in model)
            assert is_stalled(*hangs.result())
            # What waits behind it is computed.
            assert isinstance(call(server, [5, 6])[0], np.ndarray)
            server.wait_until("a lane to work again", lambda: whole[-1] == model[-1] == "SERVING")
            assert list(whole) == list(model) == ["SERVING", "NOT_SERVING", "SERVING"]
        assert http(server, "GET", "/readyz").status == 200
        assert server.total("harken_lanes_replaced_total", lane="0") == 1
        assert server.total("harken_lanes", state="working") == 1
        assert server.total("harken_memory_bytes", kind="predicted_batch") > 0
        file.unlink()
        server.wait_until("its memory", lambda: server.total("harken_memory_bytes", kind="predicted_batch") == 0)
        assert server.total("harken_accepted_total") == server.total("harken_finished_total") == 2
        server.terminate()
        assert server.wait_exit() == 0


def test_a_server_with_a_thread_that_hangs_still_drains(tiny_models: Path, tmp_path: Path) -> None:
    environment, _ = hanging_engine(tmp_path)
    with running_server(tiny_models, *ONE_LANE, environment=environment) as server:
        assert is_stalled(*call(server, [HANGS]))
        server.terminate()
        assert server.wait_exit() == 0


def test_a_server_in_which_too_much_hangs_ends_so_that_it_is_started_anew(tiny_models: Path, tmp_path: Path) -> None:
    environment, _ = hanging_engine(tmp_path)
    options = (*ONE_LANE[:-1], "2")
    with running_server(tiny_models, *options, environment=environment) as server:
        for _ in range(4):
            assert is_stalled(*call(server, [HANGS]))
        assert server.wait_exit() == 70
        (last,) = [line for line in server.log if line["level"] == "critical"]
        assert "4 threads hang in the engine" in last["error"]
