"""ModelStreamInfer: answers leave in the order of the requests; one that fails does not end the stream."""

from typing import Final

import grpc
import structlog
from harken.oip import inference_pb2 as pb

from harken_server.errors import InvalidRequest, Refusal
from harken_server.rpc.calls import Call, Calls, Context
from harken_server.rpc.oip.infer import infer, version_of
from harken_server.rpc.oip.messages import LIMITS, message_of, request_of
from harken_server.rpc.status import answer, bug
from harken_server.rpc.stream import Stream, Streams
from harken_server.rpc.wire import parse, readable_text
from harken_server.service import Service
from harken_server.telemetry.statistics import Statistics

log = structlog.get_logger()


class InferStream(Stream):
    """One stream of inference.GRPCInferenceService."""

    in_order = True

    def __init__(
        self, service: Service, calls: Calls, streams: Streams, call: Call, context: Context, max_message_bytes: int
    ) -> None:
        super().__init__(service, calls, streams, call, context)
        self._max_message_bytes: Final = max_message_bytes

    async def answer(self, raw: bytes, index: int) -> tuple[bytes, int]:
        """See Stream."""
        received_s = self.calls.clock()
        response = pb.ModelStreamInferResponse()
        request_id = ""
        held_bytes = 0
        statistics: Statistics | None = None
        trace, code = self.traced(received_s), grpc.StatusCode.OK
        try:
            try:
                message = parse(pb.ModelInferRequest, raw, self._max_message_bytes, LIMITS)
            except InvalidRequest:
                request_id = readable_text(pb.ModelInferRequest, raw, ("id",))
                raise
            request_id = message.id
            model = self.service.find(message.model_name, version_of(message.model_version, "model_version"))
            self.call.model = model.manifest.name
            statistics = self.calls.metrics.statistics[model.key]
            deadline = self.call.deadline.within(self.streams.max_request_s, received_s)
            started_s = self.calls.clock()
            asked = request_of(message)
            inferred, answers = await infer(self.service, asked, model, self.call, deadline, started_s, trace)
            held_bytes = answers.size_bytes
            response.infer_response.CopyFrom(message_of(inferred))
            self.calls.answered(self.call, received_s, answers, trace)
        except Refusal as refusal:
            refused = answer(refusal, self.call.request_id)
            self.calls.rejected(self.call.model, refusal, refused.reason)
            self.calls.input_ended(self.call, refused, statistics, received_s)
            response = _failed(refused.status.message, request_id)
            code = refused.code
        except Exception:
            log.exception("request failed", **self.call.names)
            failure = bug(self.call.request_id)
            self.calls.input_ended(self.call, failure, statistics, received_s)
            response = _failed(failure.status.message, request_id)
            code = grpc.StatusCode.INTERNAL
        self.ended(trace, code)
        return response.SerializeToString(), held_bytes


def _failed(message: str, request_id: str) -> pb.ModelStreamInferResponse:
    """The id tells a client that waits for several answers which one failed."""
    return pb.ModelStreamInferResponse(error_message=message, infer_response=pb.ModelInferResponse(id=request_id))
