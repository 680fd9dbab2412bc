"""A plain server without batching: each call runs alone, in a thread. `python -m bench.baselines.single MODEL.onnx`

gRPC's own pool of threads, and as many runs at once as there are cores, each in a session of its own: more would only
take turns. Prints {"port": N}; ends with its standard input.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import onnxruntime as ort  # type: ignore[import-untyped]  # ships no types
from bench.baselines import model
from bench.machine import usable_cores
from harken.v1 import encoder_pb2 as pb

# Two more than cores: they read and write messages while the others run. With 2, 4, 8 or 64 a call cost the same CPU.
THREADS = usable_cores() + 2


def main() -> None:
    idle: SimpleQueue[ort.InferenceSession] = SimpleQueue()
    for _ in range(usable_cores()):
        idle.put(model.session(sys.argv[1]))

    def encode(request: pb.EncodeRequest, _: grpc.ServicerContext) -> pb.EncodeResponse:
        ids = model.token_ids(request)
        feed = model.padded([ids])
        session = idle.get()
        try:
            vectors = model.encode(session, feed)
        finally:
            idle.put(session)
        return model.answer(vectors[0], len(ids))

    method = grpc.unary_unary_rpc_method_handler(
        encode,
        request_deserializer=pb.EncodeRequest.FromString,
        response_serializer=pb.EncodeResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(THREADS), [model.handler(method)], options=model.OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    model.tell(port=port)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
