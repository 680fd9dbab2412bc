"""The service inference.GRPCInferenceService: the Open Inference Protocol over gRPC, with what Triton's clients ask."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from harken.oip import inference_pb2 as pb

from harken_server.errors import BadValue, InvalidRequest, ModelNotFound, NotReady, TurnedOff
from harken_server.execution.control import Control
from harken_server.rpc.calls import Call, Calls, Context, when_done
from harken_server.rpc.listener import Handlers
from harken_server.rpc.oip.infer import UNLOADING, check_parameters, infer, version_of
from harken_server.rpc.oip.messages import (
    LIMITS,
    config_of,
    message_of,
    metadata_of,
    request_of,
    server_metadata,
    statistics_of,
)
from harken_server.rpc.oip.stream import InferStream
from harken_server.rpc.stream import Streams
from harken_server.rpc.wire import parse
from harken_server.service import Service

SERVICE: Final = "inference.GRPCInferenceService"
M = TypeVar("M", bound=Message)


class Inference:
    """Handlers that take and give raw bytes."""

    def __init__(
        self, service: Service, calls: Calls, streams: Streams, control: Control, max_message_bytes: int
    ) -> None:
        self._service: Final = service
        self._calls: Final = calls
        self._streams: Final = streams
        self._control: Final = control
        self._max_message_bytes: Final = max_message_bytes

    def handlers(self) -> Handlers:
        """What a gRPC server registers."""
        unary = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_model_load,
            "RepositoryModelUnload": self.repository_model_unload,
        }
        handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(handle) for name, handle in unary.items()}
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self.model_stream_infer)
        return handlers

    async def model_infer(self, raw: bytes, context: Context) -> bytes:
        """ModelInfer(ModelInferRequest) -> ModelInferResponse."""

        async def work(call: Call) -> bytes:
            message = parse(pb.ModelInferRequest, raw, self._max_message_bytes, LIMITS)
            model = self._service.find(message.model_name, version_of(message.model_version, "model_version"))
            self._calls.found(call, model)
            started_s = self._calls.clock()
            asked = request_of(message)
            response, answers = await infer(self._service, asked, model, call, call.deadline, started_s, call.trace)
            when_done(context, partial(self._service.sent, answers.size_bytes))
            answer = message_of(response)
            self._calls.answered(call, call.received_s, answers, call.trace)
            return answer.SerializeToString()

        return await self._calls.answer("ModelInfer", context, work)

    async def model_stream_infer(self, _: AsyncIterator[bytes], context: Context) -> None:
        """ModelStreamInfer(stream ModelInferRequest) -> stream ModelStreamInferResponse."""

        async def work(call: Call) -> None:
            await InferStream(self._service, self._calls, self._streams, call, context, self._max_message_bytes).run()

        await self._calls.answer("ModelStreamInfer", context, work, unary=False)

    async def server_live(self, raw: bytes, context: Context) -> bytes:
        """ServerLive: whoever can answer is alive."""

        async def work(_: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
            return pb.ServerLiveResponse(live=True)

        return await self._unary("ServerLive", raw, context, pb.ServerLiveRequest, work)

    async def server_ready(self, raw: bytes, context: Context) -> bytes:
        """ServerReady: all models are loaded, and it goes on."""

        async def work(_: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
            return pb.ServerReadyResponse(ready=self._service.ready)

        return await self._unary("ServerReady", raw, context, pb.ServerReadyRequest, work)

    async def model_ready(self, raw: bytes, context: Context) -> bytes:
        """ModelReady: false, and no error, for a model that is not there."""

        async def work(request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
            wanted = version_of(request.version, "version")
            try:
                self._service.find(request.name, wanted)
            except (ModelNotFound, NotReady):
                return pb.ModelReadyResponse(ready=False)
            return pb.ModelReadyResponse(ready=self._service.ready)

        return await self._unary("ModelReady", raw, context, pb.ModelReadyRequest, work)

    async def server_metadata(self, raw: bytes, context: Context) -> bytes:
        """ServerMetadata."""

        async def work(_: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
            return server_metadata(self._control.allowed)

        return await self._unary("ServerMetadata", raw, context, pb.ServerMetadataRequest, work)

    async def model_metadata(self, raw: bytes, context: Context) -> bytes:
        """ModelMetadata: of a version, with the versions that there are."""

        async def work(request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
            model = self._service.find(request.name, version_of(request.version, "version"))
            return metadata_of(model, self._service.versions(model.manifest.name))

        return await self._unary("ModelMetadata", raw, context, pb.ModelMetadataRequest, work)

    async def model_config(self, raw: bytes, context: Context) -> bytes:
        """ModelConfig."""

        async def work(request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
            model = self._service.find(request.name, version_of(request.version, "version"))
            return pb.ModelConfigResponse(config=config_of(model, self._service.limits.inputs))

        return await self._unary("ModelConfig", raw, context, pb.ModelConfigRequest, work)

    async def model_statistics(self, raw: bytes, context: Context) -> bytes:
        """ModelStatistics: of one version, of all of a model, or of all models."""

        async def work(request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
            models = [model for model, _ in self._service.models()]
            wanted = version_of(request.version, "version")
            if request.name:
                self._service.find(request.name, wanted)
                models = [model for model in models if model.manifest.name == request.name]
                models = [model for model in models if wanted in (0, model.manifest.version)]
            statistics = self._calls.metrics.statistics
            return pb.ModelStatisticsResponse(
                model_stats=[statistics_of(model, statistics[model.key]) for model in models]
            )

        return await self._unary("ModelStatistics", raw, context, pb.ModelStatisticsRequest, work)

    async def repository_index(self, raw: bytes, context: Context) -> bytes:
        """RepositoryIndex: every bundle in the folder, and what is served."""

        async def work(request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
            _only_repository(request.repository_name)
            entries = await self._control.index()
            index = pb.RepositoryIndexResponse()
            for entry in entries:
                if entry.state == "READY" or not request.ready:
                    index.models.add(
                        name=entry.name, version=str(entry.version), state=entry.state, reason=entry.reason
                    )
            return index

        return await self._unary("RepositoryIndex", raw, context, pb.RepositoryIndexRequest, work)

    async def repository_model_load(self, raw: bytes, context: Context) -> bytes:
        """RepositoryModelLoad: serve every version of the model in the folder."""

        async def work(request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
            await self._control.load(self._named(request))
            return pb.RepositoryModelLoadResponse()

        return await self._unary("RepositoryModelLoad", raw, context, pb.RepositoryModelLoadRequest, work)

    async def repository_model_unload(self, raw: bytes, context: Context) -> bytes:
        """RepositoryModelUnload: accept no more for the model, and let go of it once what was accepted is answered."""

        async def work(request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
            await self._control.unload(self._named(request, UNLOADING))
            return pb.RepositoryModelUnloadResponse()

        return await self._unary("RepositoryModelUnload", raw, context, pb.RepositoryModelUnloadRequest, work)

    def _named(
        self,
        request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest,
        known: Collection[str] = (),
    ) -> str:
        if not self._control.allowed:
            raise TurnedOff("model_control")
        check_parameters(request.parameters, known)
        if not request.model_name:
            return request.repository_name  # KServe's own protocol has the model's name in its place
        _only_repository(request.repository_name)
        return request.model_name

    async def _unary(
        self, method: str, raw: bytes, context: Context, kind: type[M], work: Callable[[M], Awaitable[Message]]
    ) -> bytes:
        async def parsed(_: Call) -> bytes:
            return (await work(parse(kind, raw, self._max_message_bytes))).SerializeToString()

        return await self._calls.answer(method, context, parsed)


def _only_repository(name: str) -> None:
    if name:
        raise InvalidRequest(
            (BadValue("repository_name", repr(name), "empty; there is one repository, without a name"),)
        )
