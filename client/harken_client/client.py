"""The asynchronous client, the real one."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import Literal, Self, Unpack, overload

import grpc
import numpy as np
from harken.v1 import admin_pb2, debug_pb2
from harken.v1 import encoder_pb2 as pb

from harken_client import calls, health, wire
from harken_client.attention import wire as attend_wire
from harken_client.attention.values import AttendOptions, Attention
from harken_client.channel import MOST_ATTEMPTS, MOST_MESSAGE_BYTES
from harken_client.checks import checked_count, checked_target, checked_tenant, checked_text
from harken_client.connection import Connection
from harken_client.errors import HarkenError, InternalError, moved, placed
from harken_client.retry import Deadline, checked_timeout_s
from harken_client.security import key_for
from harken_client.source import StreamInput, iterate
from harken_client.stream import MAX_WINDOW, BulkRun
from harken_client.values import (
    Batch,
    CallOptions,
    Encoding,
    Input,
    Match,
    ModelInfo,
    Output,
    Priority,
    Setting,
    StreamResult,
    Truncate,
    Vector,
    VectorOptions,
)

DEFAULT_TARGET = "localhost:8001"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MOST_EXPLAINED = 4096
"""As many batches as a server ever keeps."""


class AsyncClient:
    """A client of one harken server. Belongs to the event loop in which it is first used.

        async with AsyncClient("localhost:8001") as client:
            vectors = await client.encode(["first text", "second text"])

    target              host:port; every address that the host has takes part, each call goes to the next
    model, version      asked for where a call names none; "" is the server's only model, 0 its
                        default version
    timeout_s           the longest that a call may take, its retries included
    max_message_bytes   the largest request and the largest answer
    max_inputs          the most inputs in one call; longer lists become several calls
    tenant              who asks, for fair shares between tenants: 1 to 64 printable ASCII characters, no
                        spaces; "" names nobody
    max_attempts        how often in a row one call may fail to reach a server, at most 5; 1 turns every
                        retry off
    wait_for_ready      whether calls wait for a server that cannot be reached, as long as their deadline allows,
                        and then raise DeadlineExceeded, whatever the cause; else one that finds none raises
                        Unavailable after `max_attempts`: some 1.5 s for 4, 3.5 s for 5
    credentials         TLS and call credentials; None is plain text
    api_key             sent with every call; None is what the environment's HARKEN_API_KEY says
    allow_plaintext_key whether it may be sent in plain text beyond this machine, into a mesh that encrypts, say

    Every call may be repeated, since encoding changes nothing: where the server says so
    (google.rpc.RetryInfo), not before its delay and as often as the deadline allows; and up to
    `max_attempts` times where the connection could not be made, or broke before the answer (a name
    that cannot be resolved is told at once). Never past the deadline.

    Every method raises HarkenError, or what harken_client.errors draws below it; ValueError and
    TypeError for arguments that cannot be sent at all.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        version: int = 0,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_inputs: int = 1024,
        tenant: str = "",
        priority: Priority = "interactive",
        max_attempts: int = 4,
        wait_for_ready: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        allow_plaintext_key: bool = False,
    ) -> None:
        self._target = checked_target(target)
        self._model = checked_text("model", model)
        self._version = checked_count("version", version)
        self._timeout_s = checked_timeout_s(timeout_s)
        self._limits = calls.CallLimits(
            checked_count("max_inputs", max_inputs, least=1),
            checked_count("max_message_bytes", max_message_bytes, least=1, most=MOST_MESSAGE_BYTES),
        )
        self._tenant = checked_tenant(tenant)
        self._priority = priority
        self._max_attempts = checked_count("max_attempts", max_attempts, least=1, most=MOST_ATTEMPTS)
        self._wait_for_ready = wait_for_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._credentials = credentials
        in_the_open = credentials is None and not allow_plaintext_key
        self._api_key = key_for(target, api_key, in_the_open=in_the_open)
        self._open_connection: Connection | None = None
        self._closed = False
        self._known_models: dict[tuple[str, int], ModelInfo] = {}

    async def __aenter__(self) -> Self:
        self._connection()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is under way and close the connection. Later calls raise RuntimeError."""
        self._closed = True
        if self._open_connection is not None:
            await self._open_connection.close()

    @overload
    async def encode(
        self, inputs: Sequence[Input], *, output: Literal["sentence"] = ..., **options: Unpack[CallOptions]
    ) -> Vector: ...

    @overload
    async def encode(
        self, inputs: Sequence[Input], *, output: Literal["tokens"], **options: Unpack[CallOptions]
    ) -> list[Vector]: ...

    async def encode(
        self,
        inputs: Sequence[Input],
        *,
        output: Output = "sentence",
        truncate: Truncate = False,
        model: str | None = None,
        version: int | None = None,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        **vector: Unpack[VectorOptions],
    ) -> Vector | list[Vector]:
        """Encode texts, or sequences of token ids.

        Returns float32 [inputs, hidden], or what `dimensions`, `normalize`, `pooling` and
        `element_type` make of it (see VectorOptions); for output="tokens" a list with one float32
        [tokens, hidden] for each input, special tokens included. An input over the model's
        maximum length is an error, unless `truncate` lets it lose its end ("right", or True) or its
        beginning ("left"), or `chunking` cuts it into several. `timeout_s` holds for the whole list. The first input
        that fails raises its error, `index` set.
        """
        chunking = vector.get("chunking")
        if chunking is not None and chunking.vectors == "all":
            raise ValueError('chunking with vectors="all" gives each text its own shape: call encode_detailed')
        encodings = await self.encode_detailed(
            inputs,
            output=output,
            truncate=truncate,
            model=model,
            version=version,
            timeout_s=timeout_s,
            priority=priority,
            **vector,
        )
        if output == "tokens":
            return [encoding.vector.copy() for encoding in encodings]
        if not encodings:
            info = await self.model(model, version, timeout_s=timeout_s)
            return wire.empty_vectors(info, vector)
        return np.stack([encoding.vector for encoding in encodings])

    @overload
    async def encode_detailed(
        self,
        inputs: Sequence[Input],
        *,
        output: Output = ...,
        return_errors: Literal[False] = ...,
        **options: Unpack[CallOptions],
    ) -> list[Encoding]: ...

    @overload
    async def encode_detailed(
        self,
        inputs: Sequence[Input],
        *,
        output: Output = ...,
        return_errors: Literal[True],
        **options: Unpack[CallOptions],
    ) -> list[Encoding | HarkenError]: ...

    async def encode_detailed(
        self,
        inputs: Sequence[Input],
        *,
        output: Output = "sentence",
        truncate: Truncate = False,
        model: str | None = None,
        version: int | None = None,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        return_errors: bool = False,
        **vector: Unpack[VectorOptions],
    ) -> list[Encoding] | list[Encoding | HarkenError]:
        """As `encode`, with the length, the timings and the model version of each answer.

        With `return_errors` an input that fails stands in the list as its HarkenError. Errors of
        the whole call are raised all the same: the server checks all inputs before any work.
        """
        if isinstance(inputs, str):
            raise TypeError("inputs is a list; for one text write encode([text])")
        deadline = self._deadline(timeout_s)
        name, number = self._asked(model, version)
        options = wire.options_message(output, truncate, priority or self._priority, vector)
        messages = wire.input_messages("inputs", inputs)
        sizes = calls.any_models_answer(messages, self._limits, output, vector) or calls.answer_sizes(
            messages, await self._known(name, number, deadline), output, vector
        )

        outcomes: list[Encoding | HarkenError] = []
        for start, end in calls.split(messages, self._limits, sizes):
            request = pb.EncodeRequest(model=name, version=number, options=options, inputs=messages[start:end])
            try:
                response = await self._connection().call(self._connection().stub.Encode, request, deadline)
            except HarkenError as error:
                raise moved(error, start)  # noqa: B904 - the same error, told in the caller's positions
            if len(response.results) != end - start:
                raise InternalError(f"{end - start} inputs got {len(response.results)} answers")
            for index, result in enumerate(response.results, start):
                try:
                    outcomes.append(wire.encoding(result, response.model, response.version))
                except HarkenError as error:
                    outcomes.append(placed(error, index))
                    if not return_errors:
                        raise
        return outcomes

    async def similarity(
        self,
        query: Input,
        candidates: Sequence[Input],
        *,
        top_k: int | None = None,
        truncate: Truncate = False,
        model: str | None = None,
        version: int | None = None,
        timeout_s: float | None = None,
        priority: Priority | None = None,
    ) -> list[Match]:
        """How alike the query and each candidate are, the best first; `top_k` of them, or all.

        One call: query and candidates together are at most the server's `max_inputs`.
        """
        if isinstance(candidates, str):
            raise TypeError("candidates is a list; for one text write similarity(query, [text])")
        name, number = self._asked(model, version)
        request = pb.SimilarityRequest(
            model=name,
            version=number,
            options=wire.options_message("sentence", truncate, priority or self._priority, {}),
            query=wire.placed_message("query", query),
            candidates=wire.input_messages("candidates", candidates),
            top_k=0 if top_k is None else checked_count("top_k", top_k, least=1),
        )
        connection = self._connection()
        response = await connection.call(connection.stub.Similarity, request, self._deadline(timeout_s))
        return [Match(match.index, match.score) for match in response.matches]

    async def attend(
        self,
        text: Input,
        other: Input | None = None,
        *,
        model: str | None = None,
        version: int | None = None,
        timeout_s: float | None = None,
        **options: Unpack[AttendOptions],
    ) -> Attention:
        """What the tokens of a text attend to and, of two texts, what their tokens add to their similarity.

        Without options: all maps, rollout, received attention and entropy. With some, exactly those (AttendOptions);
        `layers`, `heads` and `truncate` alone leave it at all of them. The server runs one at a time, behind
        everybody's interactive work. Raises FailedPrecondition for a model without an attention graph, and where tokens
        do not add up to a similarity.
        """
        if not set(options) - {"layers", "heads", "truncate"}:
            options = {**options, "maps": True, "rollout": True, "received": True, "entropy": True}
        name, number = self._asked(model, version)
        request = attend_wire.request(text, other, name, number, options)
        connection = self._connection()
        assembly = attend_wire.Assembly(text, other)

        def begin() -> Callable[[pb.AttendResponse], None]:
            nonlocal assembly
            assembly = attend_wire.Assembly(text, other)
            return assembly.take

        await connection.collect(connection.stub.Attend, request, self._deadline(timeout_s), begin)
        return assembly.whole()

    async def encode_stream(
        self,
        inputs: AsyncIterable[StreamInput] | Iterable[StreamInput],
        *,
        ordered: bool = True,
        window: int = MAX_WINDOW,
        output: Output = "sentence",
        truncate: Truncate = False,
        model: str | None = None,
        version: int | None = None,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        **vector: Unpack[VectorOptions],
    ) -> AsyncGenerator[StreamResult, None]:
        """Encode any number of inputs in bounded memory.

        `inputs` yields inputs, or pairs (id, input), with an id of at most 256 bytes. Every input
        gives exactly one StreamResult; one that fails carries `.error` and stops nothing. `ordered`
        gives them back in the order of the source, otherwise as they are ready. At most `window`
        (256) inputs are between the source and the caller. Plain iterables that are no sequence
        are read in a thread of their own.

        `timeout_s` is the longest silence: DeadlineExceeded if the server owes answers and gives
        none for so long, and what the server refuses for now, it refuses for good if nothing
        is answered for so long. When the server drains, ends the stream for its age, or is gone all of a
        sudden, the rest goes on over a new stream, nothing lost nor doubled.
        """
        if isinstance(inputs, str):
            raise TypeError("inputs yields texts; for one text write encode_stream([text])")
        window = checked_count("window", window, least=1, most=MAX_WINDOW)
        name, number = self._asked(model, version)
        options = wire.options_message(output, truncate, priority or self._priority, vector)
        run = BulkRun(
            self._connection(),
            pb.StreamOpen(model=name, version=number, options=options),
            self._limits,
            ordered=ordered,
            window=window,
            timeout_s=self._timeout_s if timeout_s is None else checked_timeout_s(timeout_s),
        )
        run.begin(iterate(inputs))
        try:
            while (result := await run.next()) is not None:
                yield result
        finally:
            await run.end()

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Every model version that the server holds."""
        connection = self._connection()
        response = await connection.call(connection.stub.ListModels, pb.ListModelsRequest(), self._deadline(timeout_s))
        return [wire.model_info(message) for message in response.models]

    async def model(
        self, name: str | None = None, version: int | None = None, *, timeout_s: float | None = None
    ) -> ModelInfo:
        """One model version, by default the one that `encode` would ask. Raises ModelNotFound."""
        return await self._described(*self._asked(name, version), self._deadline(timeout_s))

    async def _described(self, name: str, version: int, deadline: Deadline) -> ModelInfo:
        connection = self._connection()
        request = pb.GetModelRequest(model=name, version=version)
        response = await connection.call(connection.stub.GetModel, request, deadline)
        return wire.model_info(response.model)

    async def explain_batches(self, last: int = 20, *, timeout_s: float | None = None) -> list[Batch]:
        """The server's last batches, the newest last: who rode with whom, and why.

        Fewer than `last` where the server keeps fewer; an error with reason TURNED_OFF where it keeps none.
        """
        last = checked_count("last", last, least=1, most=MOST_EXPLAINED)
        connection = self._connection()
        request = debug_pb2.ExplainBatchesRequest(last=last)
        response = await connection.call(connection.debug.ExplainBatches, request, self._deadline(timeout_s))
        return [wire.batch(message) for message in response.batches]

    async def settings(
        self, change: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> list[Setting]:
        """What the server is set to, after `change`, by name, of those that are changeable; until its process ends.

        An error with reason TURNED_OFF unless the server's `remote_settings` is on.
        """
        connection = self._connection()
        given = {checked_text("change", name): checked_text("change", value) for name, value in (change or {}).items()}
        request = admin_pb2.SettingsRequest(change=given)
        response = await connection.call(connection.admin.Settings, request, self._deadline(timeout_s))
        return [wire.setting(message) for message in response.settings]

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """SERVING, NOT_SERVING or UNKNOWN; the whole server by default. Raises ModelNotFound."""
        return await health.check(self._connection(), service, self._deadline(timeout_s))

    async def watch_health(self, service: str = "") -> AsyncGenerator[str, None]:
        """The health now and at each change, for as long as the server lets watch: the one call
        without a deadline. Waits for a server that is not there yet.
        """
        statuses = health.watch(self._connection(), service)
        try:
            async for status in statuses:
                yield status
        finally:
            await statuses.aclose()

    async def wait_ready(self, timeout_s: float | None = None, *, service: str = "") -> None:
        """Return once the server is there and SERVING. Raises DeadlineExceeded."""
        await health.wait_serving(self._connection(), service, self._deadline(timeout_s))

    def _connection(self) -> Connection:
        if self._closed:
            raise RuntimeError("this client is closed; make a new one")
        loop = asyncio.get_running_loop()
        if self._open_connection is None:
            self._loop = loop
            self._open_connection = Connection(
                self._target,
                max_message_bytes=self._limits.max_message_bytes,
                max_attempts=self._max_attempts,
                credentials=self._credentials,
                tenant=self._tenant,
                api_key=self._api_key,
                wait_for_ready=self._wait_for_ready,
            )
        if self._loop is not loop:
            raise RuntimeError("this AsyncClient belongs to the event loop that used it first; make one in each")
        return self._open_connection

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self._timeout_s if timeout_s is None else timeout_s, time.monotonic())

    def _asked(self, model: str | None, version: int | None) -> tuple[str, int]:
        """A call that names another model does not inherit this client's version."""
        number = None if version is None else checked_count("version", version)
        if model is None:
            return self._model, self._version if number is None else number
        return checked_text("model", model), number or 0

    async def _known(self, model: str, version: int, deadline: Deadline) -> ModelInfo:
        """Asks for it only once."""
        info = self._known_models.get((model, version))
        if info is None:
            info = self._known_models[model, version] = await self._described(model, version, deadline)
        return info
