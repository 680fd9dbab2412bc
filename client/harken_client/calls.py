"""How a long list becomes several calls, each within the limits of one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harken.v1 import encoder_pb2 as pb

from harken_client import values
from harken_client.errors import FieldViolation, InvalidInput

# Over the bytes of its text or of its vectors, a message spends at most this on tags, shape and timings.
_INPUT_OVERHEAD_BYTES = 16
_RESULT_OVERHEAD_BYTES = 160
_CALL_OVERHEAD_BYTES = 4096
# Of a chunk, or of a token, in its text.
_PLACE_BYTES = 24


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What one Encode call may hold."""

    max_inputs: int
    max_message_bytes: int

    @property
    def body_bytes(self) -> int:
        return self.max_message_bytes - _CALL_OVERHEAD_BYTES

    def check(self, message: pb.Input, index: int) -> int:
        """Bytes that the input takes in a request. Raises InvalidInput if it fits in no call."""
        size_bytes = message.ByteSize() + _INPUT_OVERHEAD_BYTES
        if size_bytes > self.body_bytes:
            violation = FieldViolation(
                f"inputs[{index}]", f"takes {size_bytes} bytes; one call carries {self.body_bytes}"
            )
            raise InvalidInput(
                "an input is larger than one message may be",
                reason="INPUT_TOO_LARGE",
                violations=[violation],
                index=index,
            )
        return size_bytes


@dataclass(frozen=True, slots=True)
class AnswerSize:
    """Upper bounds of the answer to one input: bytes, and sequences that it is made of."""

    bytes: int
    sequences: int = 1


def split(
    inputs: Sequence[pb.Input], limits: CallLimits, sizes: Sequence[AnswerSize] | AnswerSize
) -> Iterator[tuple[int, int]]:
    """Cut a list into calls that keep to the limits, in order.

    `sizes` bounds each input's answer. Yields (start, end), none of them empty.
    Raises InvalidInput if one input alone exceeds a request.
    """
    start, request_sum, answer_sum, sequences = 0, 0, 0, 0
    for index, message in enumerate(inputs):
        request = limits.check(message, index)
        size = sizes if isinstance(sizes, AnswerSize) else sizes[index]
        full = (
            sequences + size.sequences > limits.max_inputs
            or request_sum + request > limits.body_bytes
            or answer_sum + size.bytes > limits.body_bytes
        )
        if full and index > start:
            yield start, index
            start, request_sum, answer_sum, sequences = index, 0, 0, 0
        request_sum += request
        answer_sum += size.bytes
        sequences += size.sequences
    if inputs:
        yield start, len(inputs)


def _sentence_answer(hidden_size: int) -> AnswerSize:
    """One vector for each input."""
    return AnswerSize(4 * hidden_size + _RESULT_OVERHEAD_BYTES)


# The answer to one sentence is at most this large for any model, hidden sizes up to 8,192.
_ANY_SENTENCE = _sentence_answer(8192)


def any_models_answer(
    messages: Sequence[pb.Input], limits: CallLimits, output: values.Output, vector: values.VectorOptions
) -> AnswerSize | None:
    """The answer to each input, whatever the model; None where it matters which one."""
    few = len(messages) * _ANY_SENTENCE.bytes <= limits.body_bytes
    return _ANY_SENTENCE if len(messages) <= 1 or (few and _plain(output, vector)) else None


def answer_sizes(
    messages: Sequence[pb.Input], info: values.ModelInfo, output: values.Output, vector: values.VectorOptions
) -> Sequence[AnswerSize] | AnswerSize:
    """The answer to each input, in order, or the same for all."""
    if _plain(output, vector):
        return _sentence_answer(info.hidden_size)
    return [_answer_size(message, info, output, vector) for message in messages]


def _plain(output: values.Output, vector: values.VectorOptions) -> bool:
    return output == "sentence" and not vector.get("chunking") and not vector.get("token_offsets")


def _answer_size(
    message: pb.Input, info: values.ModelInfo, output: values.Output, vector: values.VectorOptions
) -> AnswerSize:
    """The answer to one input, whatever is asked for."""
    tokens, chunking = _most_tokens(message), vector.get("chunking")
    vectors = chunks = 1
    if chunking is not None:
        # A model has at most a few special tokens.
        chunks = 1 + tokens // max(info.max_length - 8 - chunking.overlap_tokens, 1)
        vectors = chunks if chunking.vectors == "all" else 1
    tokens = min(tokens, info.max_length)
    if output == "tokens":
        vectors = tokens
    places = (chunks if chunking else 0) + (tokens if vector.get("token_offsets") else 0)
    return AnswerSize(4 * info.hidden_size * vectors + _PLACE_BYTES * places + _RESULT_OVERHEAD_BYTES, chunks)


def _most_tokens(message: pb.Input) -> int:
    if message.WhichOneof("content") == "token_ids":
        return len(message.token_ids.ids)
    # No tokenizer makes more tokens of a text than it has bytes, but for its few special ones.
    return len(message.text.encode()) + 8
