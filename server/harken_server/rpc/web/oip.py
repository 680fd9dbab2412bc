"""The Open Inference Protocol over HTTP, with Triton's binary tensor data."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.types import ASGIApp

from harken_server.errors import BadValue, InvalidRequest, NotReady, Problem, ShapeDisagrees, TooMany, TurnedOff
from harken_server.execution.control import Control
from harken_server.rpc.calls import Call
from harken_server.rpc.oip.infer import UNLOADING, check_parameters, infer, version_of
from harken_server.rpc.oip.messages import config_of, metadata_of, server_metadata, statistics_of
from harken_server.rpc.oip.values import InputTensor, OutputTensor, Parameter, WantedOutput
from harken_server.rpc.oip.values import Request as InferRequest
from harken_server.rpc.oip.values import Response as InferResponse
from harken_server.rpc.status import Answer
from harken_server.rpc.web.exchange import Exchanges, Reply, parse_json, shown, to_json

_HEADER_LENGTH: Final = "inference-header-content-length"
_BINARY: Final = "binary_data"
_BINARY_SIZE: Final = "binary_data_size"
_ALL_BINARY: Final = "binary_data_output"
_MOST_TENSORS: Final = 16
_MOST_DEPTH: Final = 8
_MOST_LISTS: Final = 1 << 16
_MOST_PARAMETERS: Final = 64
_MOST_DIGITS: Final = 12
_OCTETS: Final = "application/octet-stream"


class Oip:
    """The routes, and their form of errors."""

    def __init__(self, exchanges: Exchanges, control: Control) -> None:
        self._exchanges: Final = exchanges
        self._control: Final = control

    async def live(self, request: Request) -> ASGIApp:
        """GET /v2/health/live."""
        return await self._get(request, "GET /v2/health/live", lambda: {"live": True})

    async def ready(self, request: Request) -> ASGIApp:
        """GET /v2/health/ready."""

        def found() -> object:
            self._check_ready()
            return {"ready": True}

        return await self._get(request, "GET /v2/health/ready", found)

    async def server(self, request: Request) -> ASGIApp:
        """GET /v2."""
        extensions = ("binary_tensor_data",)
        return await self._get(request, "GET /v2", lambda: _plain(server_metadata(self._control.allowed, extensions)))

    async def model_ready(self, request: Request) -> ASGIApp:
        """GET /v2/models/NAME[/versions/VERSION]/ready."""

        def found() -> object:
            model = self._exchanges.service.find(*_asked_model(request))
            self._check_ready()
            return {"name": model.manifest.name, "ready": True}

        return await self._get(request, "GET /v2/models/ready", found)

    async def model(self, request: Request) -> ASGIApp:
        """GET /v2/models/NAME[/versions/VERSION]."""

        def found() -> object:
            model = self._exchanges.service.find(*_asked_model(request))
            return _plain(metadata_of(model, self._exchanges.service.versions(model.manifest.name)))

        return await self._get(request, "GET /v2/models", found)

    async def config(self, request: Request) -> ASGIApp:
        """GET /v2/models/NAME[/versions/VERSION]/config."""

        def found() -> object:
            service = self._exchanges.service
            return _plain(config_of(service.find(*_asked_model(request)), service.limits.inputs))

        return await self._get(request, "GET /v2/models/config", found)

    async def statistics(self, request: Request) -> ASGIApp:
        """GET /v2/models/stats, /v2/models/NAME[/versions/VERSION]/stats."""

        def found() -> object:
            models = [model for model, _ in self._exchanges.service.models()]
            name, version = _asked_model(request)
            if name:
                self._exchanges.service.find(name, version)
                models = [model for model in models if model.manifest.name == name]
                models = [model for model in models if version in (0, model.manifest.version)]
            kept = self._exchanges.calls.metrics.statistics
            return {"model_stats": [_plain(statistics_of(model, kept[model.key])) for model in models]}

        return await self._get(request, "GET /v2/models/stats", found)

    async def index(self, request: Request) -> ASGIApp:
        """POST /v2/repository/index."""

        async def work(_: Call, body: bytes) -> Reply:
            only_ready = bool(parse_json(body).get("ready", False)) if body else False
            entries = [
                {"name": entry.name, "version": str(entry.version), "state": entry.state, "reason": entry.reason}
                for entry in await self._control.index()
                if entry.state == "READY" or not only_ready
            ]
            return Reply(to_json(entries))

        return await self._exchanges.answer(request, "POST /v2/repository/index", self, work)

    async def load(self, request: Request) -> ASGIApp:
        """POST /v2/repository/models/NAME/load."""
        return await self._change(request, "POST /v2/repository/models/load", self._control.load)

    async def unload(self, request: Request) -> ASGIApp:
        """POST /v2/repository/models/NAME/unload."""
        return await self._change(request, "POST /v2/repository/models/unload", self._control.unload, UNLOADING)

    async def infer(self, request: Request) -> ASGIApp:
        """POST /v2/models/NAME[/versions/VERSION]/infer."""

        async def work(call: Call, body: bytes) -> Reply:
            service = self._exchanges.service
            model = service.find(*_asked_model(request))
            self._exchanges.calls.found(call, model)
            given, binary = _split(body, request.headers.get(_HEADER_LENGTH))
            asked, all_binary, binary_names = _request_of(given, binary)
            started_s = self._exchanges.calls.clock()
            response, answers = await infer(service, asked, model, call, call.deadline, started_s, call.trace)
            content, headers = _content(response, lambda name: binary_names.get(name, all_binary))
            self._exchanges.calls.answered(call, call.received_s, answers, call.trace)
            return Reply(content, answers, _OCTETS if headers else "application/json", headers)

        return await self._exchanges.answer(request, "POST /v2/models/infer", self, work)

    def error(self, status: int, answer: Answer) -> tuple[int, dict[str, Any]]:
        """See Form."""
        return status, {"error": answer.status.message}

    def _check_ready(self) -> None:
        service = self._exchanges.service
        if not service.ready:
            raise NotReady("loading" if service.state == "loading" else "draining", 1.0)

    async def _get(self, request: Request, method: str, found: Callable[[], object]) -> ASGIApp:
        async def work(_: Call, __: bytes) -> Reply:
            return Reply(to_json(found()))

        return await self._exchanges.answer(request, method, self, work)

    async def _change(
        self, request: Request, method: str, change: Callable[[str], Awaitable[None]], known: Collection[str] = ()
    ) -> ASGIApp:
        async def work(_: Call, body: bytes) -> Reply:
            if not self._control.allowed:
                raise TurnedOff("model_control")
            check_parameters(_parameters(parse_json(body), "parameters") if body else {}, known)
            await change(request.path_params["name"])
            return Reply(b"{}")

        return await self._exchanges.answer(request, method, self, work)


def _asked_model(request: Request) -> tuple[str, int]:
    path = request.path_params
    return path.get("name", ""), version_of(path.get("version", ""), "version")


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON at the start of a body, and the binary data behind it."""
    if header_length is None:
        return parse_json(body), b""
    digits = header_length.isascii() and header_length.isdecimal() and len(header_length) <= _MOST_DIGITS
    if not digits or int(header_length) > len(body):
        wanted = f"a number of bytes up to the body's {len(body)}"
        raise InvalidRequest((BadValue(_HEADER_LENGTH, shown(header_length), wanted),))
    return parse_json(body[: int(header_length)]), body[int(header_length) :]


def _request_of(given: dict[str, Any], binary: bytes) -> tuple[InferRequest, bool, dict[str, bool]]:
    """What is asked; whether outputs are wanted as binary data by default, and those of which that is said."""
    request_id = given.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequest((BadValue("id", shown(request_id), "a string"),))
    parameters = _parameters(given, "parameters")
    all_binary = parameters.pop(_ALL_BINARY, False) is True
    inputs: list[InputTensor] = []
    position = 0
    for index, tensor in enumerate(_objects(given, "inputs")):
        field = f"inputs[{index}]"
        own = _parameters(tensor, f"{field}.parameters")
        size_bytes = own.pop(_BINARY_SIZE, None)
        shape = tensor.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise InvalidRequest((BadValue(f"{field}.shape", shown(shape), "a list of numbers"),))
        content: bytes | Sequence[object]
        if size_bytes is None:
            content = _flat(tensor.get("data", []), shape, f"{field}.data")
        elif type(size_bytes) is int and 0 <= size_bytes <= len(binary) - position and "data" not in tensor:
            content = binary[position : position + size_bytes]
            position += size_bytes
        else:
            wanted = f"a number of bytes up to the {len(binary) - position} that are left, in place of data"
            raise InvalidRequest((BadValue(f"{field}.parameters.{_BINARY_SIZE}", shown(size_bytes), wanted),))
        name, datatype = _string(tensor, "name", field), _string(tensor, "datatype", field)
        inputs.append(InputTensor(name, datatype, tuple(shape), content, own, field, f"{field}.data"))
    if position != len(binary):
        raise InvalidRequest((ShapeDisagrees("the binary data", (position,), len(binary), "bytes"),))
    outputs: list[WantedOutput] = []
    binary_names: dict[str, bool] = {}
    for index, output in enumerate(_objects(given, "outputs")):
        field = f"outputs[{index}]"
        own = _parameters(output, f"{field}.parameters")
        name = _string(output, "name", field)
        if _BINARY in own:
            binary_names[name] = own.pop(_BINARY) is True
        outputs.append(WantedOutput(name, own))
    return InferRequest(request_id, parameters, inputs, outputs), all_binary, binary_names


def _content(response: InferResponse, is_binary: Callable[[str], bool]) -> tuple[bytes, dict[str, str]]:
    """The body, and the header that says where its JSON ends if binary data follows."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output in response.outputs:
        described: dict[str, Any] = {
            "name": output.name, "datatype": output.datatype, "shape": list(output.content.shape)
        }  # fmt: skip
        if is_binary(output.name):
            raw = _little(output)
            described["parameters"] = {_BINARY_SIZE: len(raw)}
            binary.append(raw)
        else:
            described["data"] = np.ascontiguousarray(output.content, np.float32).reshape(-1)
        outputs.append(described)
    said: dict[str, Any] = {"model_name": response.model, "model_version": str(response.version), "outputs": outputs}
    if response.id:
        said["id"] = response.id
    if response.parameters:
        said["parameters"] = dict(response.parameters)
    text = to_json(said)
    return b"".join([text, *binary]), {_HEADER_LENGTH: str(len(text))} if binary else {}


def _little(output: OutputTensor) -> bytes:
    return output.content.astype(output.content.dtype.newbyteorder("<"), copy=False).tobytes()


def _objects(given: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = given.get(name, [])
    problem: Problem | None = None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        problem = BadValue(name, shown(values), "a list of objects")
    elif len(values) > _MOST_TENSORS:
        problem = BadValue(name, f"a list of {len(values)}", f"one of at most {_MOST_TENSORS}")
    if problem:
        raise InvalidRequest((problem,))
    return list(values)


def _parameters(given: dict[str, Any], field: str) -> dict[str, Parameter]:
    values = given.get("parameters", {})
    if not isinstance(values, dict) or not all(
        isinstance(value, bool | int | float | str) for value in values.values()
    ):
        raise InvalidRequest((BadValue(field, shown(values), "an object of strings, numbers and bools"),))
    return dict(values)


def _string(given: dict[str, Any], name: str, field: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequest((BadValue(f"{field}.{name}", shown(value), "a string"),))
    return value


def _flat(data: object, shape: Sequence[int], field: str, depth: int = 0) -> list[object]:
    """The elements in a row, whether they come so or in lists of lists, which must be those of the shape."""
    if not isinstance(data, list) or depth > _MOST_DEPTH:
        raise InvalidRequest((BadValue(field, shown(data), "a list of elements"),))
    lists = sum(isinstance(element, list) for element in data)
    if lists > _MOST_LISTS:
        raise InvalidRequest((TooMany(field, lists, _MOST_LISTS),))
    nested = bool(lists or depth)
    if nested and (list(shape[depth : depth + 1]) != [len(data)] or lists != len(data) * (depth < len(shape) - 1)):
        wanted = f"flat, or lists of lists as the shape {list(shape)} says"
        raise InvalidRequest((BadValue(field, "nested in another way", wanted),))
    if not lists:
        return data
    return [element for inner in data for element in _flat(inner, shape, field, depth + 1)]


def _plain(message: Message) -> dict[str, Any]:
    """A message as Triton's JSON has it: every field by its own name, and whole numbers as numbers."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and not field.is_repeated:
            plain[field.name] = _plain(value)
        elif field.message_type is not None:
            plain[field.name] = [_plain(element) for element in value]
        elif field.enum_type is not None:
            plain[field.name] = field.enum_type.values_by_number[value].name
        else:
            plain[field.name] = list(value) if field.is_repeated else value
    return plain
