"""A plain server without batching: each call runs alone, in a thread. `python -m bench.baselines.single MODEL.onnx`

gRPC's own pool of threads, one session of one thread, and as many runs at once as there are cores: more would only
take turns. Prints {"port": N}; ends with its standard input.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore

import grpc
from bench.baselines import model
from bench.machine import usable_cores
from harken.v1 import encoder_pb2 as pb

# Two more than cores: they read and write messages while the others run. With 2, 4, 8 or 64 a call cost the same CPU.
THREADS = usable_cores() + 2


def main() -> None:
    session = model.session(sys.argv[1])
    running = Semaphore(usable_cores())

    def encode(request: pb.EncodeRequest, _: grpc.ServicerContext) -> pb.EncodeResponse:
        ids = model.token_ids(request)
        feed = model.padded([ids])
        with running:
            vectors = model.encode(session, feed)
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
