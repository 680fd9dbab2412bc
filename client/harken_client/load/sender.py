"""What a load is sent over: what makes a call's message, and what sends one. Here the seam, and harken's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from harken.v1 import encoder_pb2 as pb

from harken_client import wire
from harken_client.connection import Connection
from harken_client.errors import HarkenError, from_status
from harken_client.retry import Deadline
from harken_client.values import Input, Output

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call brought.

    sequences, tokens   that were answered
    errors              of the inputs that were not
    """

    sequences: int
    tokens: int
    errors: tuple[HarkenError, ...] = ()


class Sender(Protocol[Message]):
    """One protocol, over connections that are open."""

    def message(self, inputs: Sequence[Input]) -> Message:
        """The message of a call, made beforehand so that the sending is light."""

    async def send(self, message: Message, deadline: Deadline) -> Answer:
        """Send it once, so that every refusal is seen. Raises HarkenError if the whole call fails."""


class EncodeSender:
    """harken.v1.Encoder/Encode. `connection` makes one attempt for each call."""

    def __init__(self, connection: Connection, model: str, version: int, output: Output) -> None:
        self._connection = connection
        self._model = model
        self._version = version
        self._options = wire.options_message(output, True, "interactive", {})

    def message(self, inputs: Sequence[Input]) -> pb.EncodeRequest:
        return pb.EncodeRequest(
            model=self._model,
            version=self._version,
            options=self._options,
            inputs=[wire.input_message(value) for value in inputs],
        )

    async def send(self, message: pb.EncodeRequest, deadline: Deadline) -> Answer:
        response = await self._connection.call(self._connection.stub.Encode, message, deadline)
        answered = [result for result in response.results if not result.HasField("error")]
        errors = tuple(from_status(result.error) for result in response.results if result.HasField("error"))
        return Answer(len(answered), sum(result.tokens for result in answered), errors)
