"""Every way in which a request can end other than with a vector, as values.

    Refusal                     the base; raised, never returned
    ├── InvalidRequest          it can never succeed: one Problem for each field at fault
    ├── TurnedOff               the server's settings leave out what it asks for
    ├── CannotAttend            the model has not what Attend needs
    ├── ModelNotFound           no such model, or no such version of it
    ├── LoadFailed              a model that was to be loaded cannot be served
    ├── BacklogFull             it may succeed later; carries the predicted wait
    ├── DeadlineUnreachable     what waits already would make it late; it may succeed later
    ├── NotReady                the server is loading or draining
    ├── Expired                 its deadline passed, or the server's cap on any request
    ├── Abandoned               the caller went away
    ├── NoMemory                the machine had none for this sequence, even alone; it may succeed later
    └── ComputeFailed           the engine failed on this sequence alone, or on its batch without an end

They carry evidence, not sentences: only `rpc` knows status codes and speaks to a person.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one field, named as it stands in the request, for instance `inputs[17].text`."""

    field: str


@dataclass(frozen=True, slots=True)
class Missing(Problem):
    """The field is required and absent."""


@dataclass(frozen=True, slots=True)
class NoContent(Problem):
    """The input has neither text nor token ids."""


@dataclass(frozen=True, slots=True)
class NoTokens(Problem):
    """The text is empty, or holds nothing that the tokenizer makes a token of; or the id list is empty."""


@dataclass(frozen=True, slots=True)
class NotUtf8(Problem):
    """The bytes of a text are not UTF-8."""


@dataclass(frozen=True, slots=True)
class NotProtobuf(Problem):
    """The bytes of the message are not the protobuf message that the method takes."""

    message: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NotJson(Problem):
    """The body of a message is not the JSON that the method takes."""

    why: str


@dataclass(frozen=True, slots=True)
class TooMany(Problem):
    """More elements than a limit allows."""

    count: int
    limit: int
    at_least: bool = False
    """Whether counting stopped at `count`."""


@dataclass(frozen=True, slots=True)
class TooManyChunks(Problem):
    """With this text the inputs of a call become more sequences than a call may have."""

    at_least: int
    limit: int


@dataclass(frozen=True, slots=True)
class TooManyBytes(Problem):
    """More bytes than a limit allows."""

    size_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class SequenceTooLong(Problem):
    """More tokens than the model has positions for, and no leave to truncate."""

    length: int
    limit: int
    at_least: bool = False
    """Whether counting stopped at `length`."""
    chunks: bool = False
    """Whether it was to be cut into chunks, as only texts are."""


@dataclass(frozen=True, slots=True)
class TokenOutOfRange(Problem):
    """A token id outside the model's vocabulary."""

    position: int
    token_id: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class TextNotAccepted(Problem):
    """The model's bundle has no tokenizer."""

    model: str


@dataclass(frozen=True, slots=True)
class UnknownValue(Problem):
    """An enum value that this server does not know."""

    value: int
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AmbiguousModel(Problem):
    """No model was named, and the server holds several."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnswerTooLarge(Problem):
    """The answer would exceed the message limit; refused before it is computed."""

    size_bytes: int
    limit_bytes: int
    maps: bool = False
    """Whether it is of attention maps."""


@dataclass(frozen=True, slots=True)
class OverMemoryBudget(Problem):
    """The sequence alone is predicted to need more memory than any batch may take."""

    length: int
    predicted_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class OverAttendBudget(Problem):
    """The attention maps of the text are predicted to need more memory than all Attends together may take."""

    length: int
    layers: int
    heads: int
    maps_bytes: int
    predicted_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class UnknownName(Problem):
    """A tensor or a parameter that there is none of."""

    name: str
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GivenTwice(Problem):
    """A tensor that is there already under this name."""

    name: str


@dataclass(frozen=True, slots=True)
class NotTogether(Problem):
    """One of two that exclude each other."""

    other: str


@dataclass(frozen=True, slots=True)
class WrongDatatype(Problem):
    """A tensor of a datatype that it cannot have."""

    datatype: str
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WrongShape(Problem):
    """A shape that the tensor cannot have."""

    shape: tuple[int, ...]
    wanted: str
    """For instance "[batch, length]"."""


@dataclass(frozen=True, slots=True)
class ShapeDisagrees(Problem):
    """More or less content than the shape says."""

    shape: tuple[int, ...]
    given: int
    unit: Literal["elements", "bytes", "tensors"]


@dataclass(frozen=True, slots=True)
class BadMask(Problem):
    """A row of an attention mask that is no run of ones between zeros."""

    row: int
    why: Literal["value", "empty", "holes"]


@dataclass(frozen=True, slots=True)
class BadValue(Problem):
    """A value that a parameter or a field cannot have."""

    value: str
    wanted: str


@dataclass(frozen=True, slots=True)
class OutOfRange(Problem):
    """A number outside the range, whose ends are allowed."""

    value: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class OutOfPlace(Problem):
    """A stream's `open` that is not its first message."""


class Refusal(Exception):
    """The base of everything that ends a request without a vector."""

    # Not frozen: contextlib and asyncio set an exception's traceback.


@dataclass
class InvalidRequest(Refusal):
    """The request can never succeed. `problems` holds at least one, in the order of the fields."""

    problems: tuple[Problem, ...]


@dataclass
class Unauthenticated(Refusal):
    """No API key came or, `given`, one that is not known here."""

    given: bool


@dataclass
class ModelForbidden(Refusal):
    """The key of this name may not use this model."""

    key: str
    model: str


@dataclass
class AdminOnly(Refusal):
    """The key of this name is no operator's."""

    key: str


@dataclass
class KeyLimit(Refusal):
    """The key of this name has as much as it may have."""

    key: str
    unit: Literal["requests in flight", "tokens a second"]
    limit: int
    retry_after_s: float


@dataclass
class TurnedOff(Refusal):
    """What the request asks for is turned off by a setting of the server."""

    setting: str


@dataclass
class CannotAttend(Refusal):
    """The model has no attention graph; or, with `pooling`, no similarity of tokens, which that pooling gives none."""

    model: str
    version: int
    pooling: str = ""


@dataclass
class ModelNotFound(Refusal):
    """No such model (`versions` is empty), or no such version of it."""

    model: str
    version: int
    models: tuple[str, ...]
    versions: tuple[int, ...]


@dataclass
class LoadFailed(Refusal):
    """A bundle that was to be loaded is damaged, or does not run here. `why`: one line, for the operator."""

    model: str
    why: str


@dataclass
class BacklogFull(Refusal):
    """Taking the request would exceed a limit on what waits. `retry_after_s`: predicted until there is room."""

    waiting: int
    asked: int
    limit: int
    unit: Literal[
        "sequences", "tokens", "bytes of text", "bytes of answers", "bytes of requests", "bytes of attention maps"
    ]
    retry_after_s: float


@dataclass
class DeadlineUnreachable(Refusal):
    """Predicted to be done after its deadline. `retry_after_s`: until what waits has made room for it."""

    predicted_s: float
    remaining_s: float
    retry_after_s: float


@dataclass
class NotReady(Refusal):
    """The server is loading its models, or draining before it stops."""

    state: Literal["loading", "draining"]
    retry_after_s: float


@dataclass
class StreamTooOld(Refusal):
    """A stream, all of whose read messages are answered, is as old as a connection may be."""

    limit_s: float
    retry_after_s: float


@dataclass
class Expired(Refusal):
    """The deadline passed. `by_cap`: it was the server's own cap, not the caller's deadline."""

    by_cap: bool


@dataclass
class Abandoned(Refusal):
    """The caller cancelled or went away."""


@dataclass
class NoMemory(Refusal):
    """Predicted to fit, but the machine had no memory for it, alone and twice. Somebody else holds it, or did."""

    retry_after_s: float


@dataclass
class ComputeFailed(Refusal):
    """The engine failed on this sequence even alone, gave a vector that is not finite, or did not end its batch."""

    reason: Literal["ENGINE_FAILED", "NOT_FINITE", "ENGINE_STALLED"]
