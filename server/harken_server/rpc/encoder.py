"""The service harken.v1.Encoder."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import grpc
from harken.v1 import encoder_pb2

from harken_server.attend import Attend
from harken_server.rpc.attend import attend
from harken_server.rpc.calls import Call, Calls, Context, when_done
from harken_server.rpc.convert import check_options, info_of, input_of, options_of, set_result
from harken_server.rpc.encode_stream import EncodeStream
from harken_server.rpc.listener import Handlers
from harken_server.rpc.similarity import best_matches, check_similarity
from harken_server.rpc.stream import Streams
from harken_server.rpc.wire import Repeated, parse
from harken_server.service import Service

SERVICE: Final = "harken.v1.Encoder"


class Encoder:
    """Handlers that take and give raw bytes."""

    def __init__(self, service: Service, door: Attend, calls: Calls, streams: Streams, max_message_bytes: int) -> None:
        self._service: Final = service
        self._attend: Final = door
        self._calls: Final = calls
        self._streams: Final = streams
        self._max_message_bytes: Final = max_message_bytes
        number = encoder_pb2.EncodeRequest.INPUTS_FIELD_NUMBER
        self._repeated: Final = (Repeated(number, "inputs", service.limits.inputs),)
        number = encoder_pb2.SimilarityRequest.CANDIDATES_FIELD_NUMBER
        self._candidates: Final = (Repeated(number, "candidates", service.limits.inputs - 1),)

    def handlers(self) -> Handlers:
        """What a gRPC server registers."""
        return {
            "Encode": grpc.unary_unary_rpc_method_handler(self.encode),
            "Similarity": grpc.unary_unary_rpc_method_handler(self.similarity),
            "Attend": grpc.unary_stream_rpc_method_handler(self.attend),
            "EncodeStream": grpc.stream_stream_rpc_method_handler(self.encode_stream),
            "ListModels": grpc.unary_unary_rpc_method_handler(self.list_models),
            "GetModel": grpc.unary_unary_rpc_method_handler(self.get_model),
        }

    async def encode(self, raw: bytes, context: Context) -> bytes:
        """Encode(EncodeRequest) -> EncodeResponse."""

        async def work(call: Call) -> bytes:
            request = parse(encoder_pb2.EncodeRequest, raw, self._max_message_bytes, self._repeated)
            options = options_of(request, call)
            model = self._service.find(options.model, options.version)
            self._calls.found(call, model)
            data_type = request.options.data_type
            check_options(options, data_type, model)
            names = [f"inputs[{index}]" for index in range(len(request.inputs))]
            longest = self._service.max_length
            truncate = options.truncate
            given = [
                input_of(message, name, longest, truncate) for message, name in zip(request.inputs, names, strict=True)
            ]
            started_s = self._calls.clock()
            answers = await self._service.encode(model, options, given, names, call.deadline, started_s)
            when_done(context, partial(self._service.sent, answers.size_bytes))
            response = encoder_pb2.EncodeResponse(
                model=call.model,
                version=answers.model.manifest.version,
                total_ns=round((self._calls.clock() - call.received_s) * 1e9),
            )
            for answer in answers.answers:
                set_result(response.results.add(), answer, call, data_type)
            self._calls.answered(call, call.received_s, answers, call.trace)
            return response.SerializeToString()

        return await self._calls.answer("Encode", context, work)

    async def similarity(self, raw: bytes, context: Context) -> bytes:
        """Similarity(SimilarityRequest) -> SimilarityResponse."""

        async def work(call: Call) -> bytes:
            request = parse(encoder_pb2.SimilarityRequest, raw, self._max_message_bytes, self._candidates)
            options = options_of(request, call)
            model = self._service.find(options.model, options.version)
            self._calls.found(call, model)
            check_similarity(request, options, model)
            names = ["query", *[f"candidates[{index}]" for index in range(len(request.candidates))]]
            longest, truncate = self._service.max_length, options.truncate
            given = [
                input_of(message, name, longest, truncate)
                for message, name in zip([request.query, *request.candidates], names, strict=True)
            ]
            answers = await self._service.encode(model, options, given, names, call.deadline, self._calls.clock())
            when_done(context, partial(self._service.sent, answers.size_bytes))
            response = encoder_pb2.SimilarityResponse(model=call.model, version=model.manifest.version)
            for index, score in best_matches(answers, request.top_k):
                response.matches.add(index=index, score=score)
            self._calls.answered(call, call.received_s, answers, call.trace)
            return response.SerializeToString()

        return await self._calls.answer("Similarity", context, work)

    async def attend(self, raw: bytes, context: Context) -> None:
        """Attend(AttendRequest) -> stream AttendResponse."""

        async def work(call: Call) -> None:
            limit_s = self._streams.max_request_s
            await attend(self._attend, self._calls, call, raw, context, self._max_message_bytes, limit_s)

        await self._calls.answer("Attend", context, work)

    async def encode_stream(self, _: AsyncIterator[bytes], context: Context) -> None:
        """EncodeStream(stream EncodeStreamRequest) -> stream EncodeStreamResponse."""

        async def work(call: Call) -> None:
            await EncodeStream(self._service, self._calls, self._streams, call, context, self._max_message_bytes).run()

        await self._calls.answer("EncodeStream", context, work, unary=False)

    async def list_models(self, raw: bytes, context: Context) -> bytes:
        """ListModels(ListModelsRequest) -> ListModelsResponse."""

        async def work(call: Call) -> bytes:
            parse(encoder_pb2.ListModelsRequest, raw, self._max_message_bytes)
            infos = [info_of(model, default_version) for model, default_version in self._service.models()]
            return encoder_pb2.ListModelsResponse(models=infos).SerializeToString()

        return await self._calls.answer("ListModels", context, work)

    async def get_model(self, raw: bytes, context: Context) -> bytes:
        """GetModel(GetModelRequest) -> GetModelResponse."""

        async def work(call: Call) -> bytes:
            request = parse(encoder_pb2.GetModelRequest, raw, self._max_message_bytes)
            model = self._service.find(request.model, request.version)
            call.model = model.manifest.name
            info = info_of(model, self._service.find(call.model, 0).manifest.version)
            return encoder_pb2.GetModelResponse(model=info).SerializeToString()

        return await self._calls.answer("GetModel", context, work)
