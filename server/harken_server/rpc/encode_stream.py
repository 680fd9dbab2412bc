"""EncodeStream: each answer leaves as soon as it is ready, and says which input it is of."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Final

import grpc
import structlog
from harken.v1 import encoder_pb2

from harken_server.errors import InvalidRequest, NoContent, NotUtf8, OutOfPlace, Refusal, TooManyBytes
from harken_server.execution.engine import TOKENS
from harken_server.models.repository import Model
from harken_server.rpc.calls import Call, Calls, Context
from harken_server.rpc.convert import check_options, input_of, options_of, set_result
from harken_server.rpc.status import answer, bug
from harken_server.rpc.stream import MOST_ID_BYTES, Stream, Streams
from harken_server.rpc.wire import parse, readable_text
from harken_server.service import Service
from harken_server.telemetry.statistics import Statistics

log = structlog.get_logger()

_INPUT: Final = "input.input"


class EncodeStream(Stream):
    """One stream of harken.v1.Encoder."""

    in_order = False

    def __init__(
        self, service: Service, calls: Calls, streams: Streams, call: Call, context: Context, max_message_bytes: int
    ) -> None:
        super().__init__(service, calls, streams, call, context)
        self._max_message_bytes: Final = max_message_bytes
        self._options = options_of(encoder_pb2.StreamOpen(), call)
        self._data_type: int = encoder_pb2.DATA_TYPE_FLOAT32
        # A version that the stream named, which stays until the stream ends; without one each input takes the default.
        self._named: Model | None = None
        self._staying: Final = ExitStack()

    async def run(self) -> None:
        """See Stream."""
        with self._staying:
            await super().run()

    def opens(self, raw: bytes) -> bool:
        """Whether the first message is `open`; then it holds for the stream. Raises InvalidRequest, ModelNotFound."""
        try:
            message = parse(encoder_pb2.EncodeStreamRequest, raw, self._max_message_bytes)
        except InvalidRequest as invalid:
            if any(isinstance(problem, NotUtf8) and problem.field.startswith("open.") for problem in invalid.problems):
                raise
            return False
        if message.WhichOneof("message") != "open":
            return False
        self._options = options_of(message.open, self.call)
        self._data_type = message.open.options.data_type
        model = self.service.find(self._options.model, self._options.version)
        self.call.model = model.manifest.name
        self.call.account.check(self.call.model)
        check_options(self._options, self._data_type, model)
        if self._options.version:
            self._named = model
            self._staying.enter_context(self.service.using(model))
        return True

    def most_unanswered(self) -> int:
        """Fewer where answers of one vector for each token are large."""
        if TOKENS not in self._options.outputs:
            return self.streams.max_unanswered
        manifest = self._model().manifest
        answer_bytes = manifest.max_length * manifest.hidden_size * 4
        return min(self.streams.max_unanswered, max(1, self._max_message_bytes // answer_bytes))

    async def answer(self, raw: bytes, index: int) -> tuple[bytes, int]:
        """See Stream."""
        received_s = self.calls.clock()
        response = encoder_pb2.EncodeStreamResponse(index=index)
        held_bytes = 0
        statistics: Statistics | None = None
        trace, code = self.traced(received_s), grpc.StatusCode.OK
        try:
            message = self._input(raw, response)
            given = input_of(message.input, _INPUT, self.service.max_length, self._options.truncate)
            deadline = self.call.deadline.within(self.streams.max_request_s, received_s)
            started_s = self.calls.clock()
            model = self._model()
            self.call.model = model.manifest.name
            statistics = self.calls.metrics.statistics[model.key]
            options = self._options if trace is self._options.trace else replace(self._options, trace=trace)
            answers = await self.service.encode(model, options, [given], [_INPUT], deadline, started_s)
            held_bytes = answers.size_bytes
            set_result(response.result, answers.answers[0], self.call, self._data_type)
            self.calls.answered(self.call, received_s, answers, trace)
        except Refusal as refusal:
            refused = answer(refusal, self.call.request_id)
            self.calls.rejected(self.call.model, refusal, refused.reason)
            self.calls.input_ended(self.call, refused, statistics, received_s)
            response.result.error.CopyFrom(refused.status)
            code = refused.code
        except Exception:
            log.exception("input failed", **self.call.names)
            failure = bug(self.call.request_id)
            self.calls.input_ended(self.call, failure, statistics, received_s)
            response.result.error.CopyFrom(failure.status)
            code = grpc.StatusCode.INTERNAL
        self.ended(trace, code)
        return response.SerializeToString(), held_bytes

    def _model(self) -> Model:
        return self._named or self.service.find(self._options.model, self._options.version)

    def _input(self, raw: bytes, response: encoder_pb2.EncodeStreamResponse) -> encoder_pb2.StreamInput:
        """The input that the bytes hold; its id goes into the response once it is known. Raises InvalidRequest."""
        try:
            message = parse(encoder_pb2.EncodeStreamRequest, raw, self._max_message_bytes)
        except InvalidRequest:
            response.id = readable_text(encoder_pb2.EncodeStreamRequest, raw, ("input", "id"))
            raise
        kind = message.WhichOneof("message")
        if kind != "input":
            raise InvalidRequest((OutOfPlace("open") if kind == "open" else NoContent("input"),))
        id_bytes = len(message.input.id.encode())
        if id_bytes > MOST_ID_BYTES:
            raise InvalidRequest((TooManyBytes("input.id", id_bytes, MOST_ID_BYTES),))
        response.id = message.input.id
        return message.input
