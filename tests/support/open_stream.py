"""A stream that stays open: one input, one answer, and then perhaps another."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any

from harken.v1 import encoder_pb2 as pb

from support.calls import stub
from support.server import RunningServer


class OpenStream(AbstractContextManager["OpenStream"]):
    """An EncodeStream of the model `tiny`."""

    def __init__(self, server: RunningServer, version: int = 0) -> None:
        self._sent: SimpleQueue[pb.EncodeStreamRequest | None] = SimpleQueue()
        self._sent.put(pb.EncodeStreamRequest(open=pb.StreamOpen(model="tiny", version=version)))
        self._call: Any = stub(server.target).EncodeStream(self._messages(), timeout=240)

    def _messages(self) -> Iterator[pb.EncodeStreamRequest]:
        while (message := self._sent.get()) is not None:
            yield message

    def answer(self, one: pb.Input) -> pb.Result:
        """Send an input, and wait for its answer."""
        self._sent.put(pb.EncodeStreamRequest(input=pb.StreamInput(input=one)))
        response: pb.EncodeStreamResponse = next(self._call)
        return response.result

    def __exit__(self, *_: object) -> None:
        self._sent.put(None)
        for _ in self._call:
            raise AssertionError("an answer to nothing")
