"""A plain server without batching: each call runs alone, in a thread. `python -m bench.baselines.single MODEL.onnx`

An event loop reads and writes; as many threads as there are cores take the calls in their order, each with a session
of its own. Prints {"port": N}; ends with its standard input.

gRPC's own pool of threads in place of the loop reaches less: its threads take the interpreter and the cores from
those that compute (W1, 64 in flight: 0.85 of one by one in-process where this reaches 0.91; W3 0.83 and 0.88).
"""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import uvloop
from bench.baselines import model
from bench.machine import usable_cores
from harken.v1 import encoder_pb2 as pb

_own = threading.local()


def _open_session() -> None:
    _own.session = model.session(sys.argv[1])


def _run(request: pb.EncodeRequest) -> pb.EncodeResponse:
    ids = model.token_ids(request)
    vectors = model.encode(_own.session, model.padded([ids]))
    return model.answer(vectors[0], len(ids))


async def main() -> None:
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(usable_cores(), initializer=_open_session)

    async def encode(request: pb.EncodeRequest, _: object) -> pb.EncodeResponse:
        return await loop.run_in_executor(threads, _run, request)

    method = grpc.unary_unary_rpc_method_handler(
        encode,
        request_deserializer=pb.EncodeRequest.FromString,
        response_serializer=pb.EncodeResponse.SerializeToString,
    )
    server = grpc.aio.server(options=model.OPTIONS)
    server.add_generic_rpc_handlers([model.handler(method)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    model.tell(port=port)
    await loop.run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(main())
