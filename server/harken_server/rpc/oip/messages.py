"""Messages of the package `inference` to values, and back; and what a model looks like to its clients."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Final

from harken.oip import inference_pb2 as pb

from harken_server.errors import InvalidRequest, NotTogether, ShapeDisagrees
from harken_server.execution.engine import TOKENS
from harken_server.models.repository import Model
from harken_server.rpc.oip.infer import ATTENTION_MASK, INPUT_IDS, OUTPUTS, PRIORITY_LEVELS, TEXT
from harken_server.rpc.oip.values import InputTensor, Parameter, Request, Response, WantedOutput
from harken_server.rpc.wire import Repeated
from harken_server.telemetry.statistics import Durations, Statistics

SERVER_NAME: Final = "harken"
EXTENSIONS: Final = ("model_configuration", "schedule_policy", "parameters", "statistics")
"""By the names that Triton gives them; `model_repository` is one more where the setting allows it."""

PLATFORM: Final = "onnx_onnxv1"
BACKEND: Final = "onnxruntime"

_MOST_TENSORS: Final = 16
_MOST_PARAMETERS: Final = 64
LIMITS: Final = (
    Repeated(4, "parameters", _MOST_PARAMETERS),
    Repeated(5, "inputs", _MOST_TENSORS, (Repeated(4, "parameters", _MOST_PARAMETERS),)),
    Repeated(6, "outputs", _MOST_TENSORS, (Repeated(2, "parameters", _MOST_PARAMETERS),)),
    Repeated(7, "raw_input_contents", _MOST_TENSORS),
)
"""Of a ModelInferRequest, by its fields' numbers: each element costs a client two bytes, and the parser an object."""

_CONTENTS: Final = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def request_of(message: pb.ModelInferRequest) -> Request:
    """What a message asks. Raises InvalidRequest where raw and typed contents stand together, or too few or many."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        shape = (len(message.inputs),)
        raise InvalidRequest((ShapeDisagrees("raw_input_contents", shape, len(raw), "tensors"),))
    inputs = []
    for index, tensor in enumerate(message.inputs):
        field = f"inputs[{index}]"
        if raw and tensor.HasField("contents"):
            raise InvalidRequest((NotTogether(f"{field}.contents", "raw_input_contents"),))
        content: bytes | Sequence[object] = raw[index] if raw else _elements(tensor, field)
        content_field = f"raw_input_contents[{index}]" if raw else f"{field}.contents"
        parameters = _without(_values(tensor.parameters), "binary_data_size")
        inputs.append(
            InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), content, parameters, field, content_field)
        )
    outputs = [
        WantedOutput(output.name, _without(_values(output.parameters), "binary_data")) for output in message.outputs
    ]
    return Request(message.id, _values(message.parameters), inputs, outputs)


def message_of(response: Response) -> pb.ModelInferResponse:
    """An answer as a message, its tensors raw."""
    message = pb.ModelInferResponse(model_name=response.model, model_version=str(response.version), id=response.id)
    for name, value in response.parameters.items():
        message.parameters[name].bool_param = bool(value)
    for output in response.outputs:
        message.outputs.add(name=output.name, datatype=output.datatype, shape=output.content.shape)
        little = output.content.astype(output.content.dtype.newbyteorder("<"), copy=False)
        message.raw_output_contents.append(little.tobytes())
    return message


def server_metadata(model_control: bool, of_edge: Sequence[str] = ()) -> pb.ServerMetadataResponse:
    """What the server is, and which extensions it has: those of every edge, and of this one."""
    extensions = [*EXTENSIONS, *of_edge, *(["model_repository"] if model_control else [])]
    return pb.ServerMetadataResponse(name=SERVER_NAME, version=version("harken"), extensions=extensions)


def metadata_of(model: Model, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """What goes in and what comes out, the batch dimension first."""
    hidden_size = model.manifest.hidden_size
    tensor = pb.ModelMetadataResponse.TensorMetadata
    inputs = [tensor(name=name, datatype="INT64", shape=[-1, -1]) for name in (INPUT_IDS, ATTENTION_MASK)]
    if model.tokenizer is not None:
        inputs.append(tensor(name=TEXT, datatype="BYTES", shape=[-1, 1]))
    return pb.ModelMetadataResponse(
        name=model.manifest.name,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=inputs,
        outputs=[
            tensor(name=name, datatype="FP32", shape=[-1, -1, hidden_size] if name == TOKENS else [-1, hidden_size])
            for name in OUTPUTS
        ],
    )


def config_of(model: Model, most_rows: int) -> pb.ModelConfig:
    """The same as Triton's configuration says it: without the batch dimension. `most_rows`: of one request."""
    hidden_size = model.manifest.hidden_size
    takes_text = model.tokenizer is not None
    config = pb.ModelConfig(
        name=model.manifest.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=most_rows,
        dynamic_batching=pb.ModelDynamicBatching(priority_levels=len(PRIORITY_LEVELS), default_priority_level=1),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )
    ragged = {"data_type": pb.TYPE_INT64, "dims": [-1], "allow_ragged_batch": True}
    config.input.add(name=INPUT_IDS, optional=takes_text, **ragged)
    config.input.add(name=ATTENTION_MASK, optional=True, **ragged)
    if takes_text:
        config.input.add(name=TEXT, data_type=pb.TYPE_STRING, dims=[1], optional=True)
    for name in OUTPUTS:
        dims = [-1, hidden_size] if name == TOKENS else [hidden_size]
        config.output.add(name=name, data_type=pb.TYPE_FP32, dims=dims)
    return config


def statistics_of(model: Model, statistics: Statistics) -> pb.ModelStatistics:
    """A version's statistics as a message."""
    return pb.ModelStatistics(
        name=model.manifest.name,
        version=str(model.manifest.version),
        last_inference=round(statistics.last_inference_s * 1e3),
        inference_count=statistics.sequences,
        execution_count=statistics.batches,
        inference_stats=pb.InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.compute_input),
            compute_infer=_duration(statistics.compute_infer),
            compute_output=_duration(statistics.compute_output),
            cache_hit=_duration(statistics.cache_hit),
            cache_miss=_duration(statistics.cache_miss),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for size, batch in sorted(statistics.by_size.items())
        ],
    )


def _duration(durations: Durations) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=durations.count, ns=round(durations.sum_s * 1e9))


def _elements(tensor: pb.ModelInferRequest.InferInputTensor, place: str) -> Sequence[object]:
    """The typed contents, of the field that the datatype has. A datatype that has none is refused by its name later.

    Raises InvalidRequest if those of another one stand there too.
    """
    field = _CONTENTS.get(tensor.datatype)
    for other, _ in tensor.contents.ListFields():
        if field and other.name != field:
            raise InvalidRequest((NotTogether(f"{place}.contents.{other.name}", f"the datatype {tensor.datatype}"),))
    elements: Sequence[object] = getattr(tensor.contents, field) if field else ()
    return elements


def _without(parameters: dict[str, Parameter], name: str) -> dict[str, Parameter]:
    """KServe's client says over gRPC, too, what only HTTP needs to know: that tensors are raw."""
    parameters.pop(name, None)
    return parameters


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    values: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        which = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, which) if which else ""
    return values
