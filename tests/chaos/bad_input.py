"""Bad input: whatever is sent, the server lives, calls nothing a failure of its own, and answers the good ones rightly.

Thousands of malformed requests, drawn from a seed, over every edge of one server at once, good ones among them.
"""

import asyncio
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt
from chaos.malformed import ENCODER, INFERENCE, STREAMS, Malformed
from chaos.sockets import frames, head
from harken.oip import inference_pb2 as oip
from harken.v1 import encoder_pb2 as pb
from support.server import RunningServer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORKERS: Final = 24
LOST_S: Final = 30.0
"""A call that has not ended by then has no answer."""
BOUND: Final = 1e-5

_POOL: Final = 60
_PIECE: Final = 100
# A head may promise a body that never comes; then nobody has to answer.
_HEAD_S: Final = 0.25
_OURS: Final = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "FAILED_PRECONDITION",
                "DEADLINE_EXCEEDED"}  # fmt: skip
"""How a call may end: every other code is a failure of the server, or its end."""
_INTERNAL: Final = grpc.StatusCode.INTERNAL.value[0]

Vector = npt.NDArray[np.float32]


@dataclass
class Seen:
    """What the callers saw."""

    seed: int
    malformed: int = 0
    good: int = 0
    lost: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class BadCallers:
    """Many at once, until so many malformed requests were sent. Belongs to its event loop."""

    def __init__(self, server: RunningServer, requests: int, seed: int) -> None:
        self._server: Final = server
        self._requests: Final = requests
        self._random: Final = Random(seed)  # noqa: S311 - draws requests, guards nothing
        self._malformed: Final = Malformed(self._random, texts=requests // 10)
        self._pool: Final[list[tuple[pb.Input, Vector]]] = []
        self.seen: Final = Seen(seed)

    async def run(self) -> None:
        """Send them all."""
        async with grpc.aio.insecure_channel(self._server.target) as channel:
            await self._learn(channel)
            self._kinds = self._drawn()

            async def worker() -> None:
                for kind in self._kinds:
                    name = kind.__name__.strip("_")
                    self.seen.kinds[name] += 1
                    self.seen.malformed += kind != self._good
                    try:
                        async with asyncio.timeout(LOST_S):
                            await kind(channel)
                    except TimeoutError:
                        self.seen.lost += 1
                        self.seen.wrong.append(f"{name}: no answer")

            await asyncio.gather(*[worker() for _ in range(WORKERS)])
            # After all of it, too.
            self._kinds = iter([self._good] * WORKERS)
            await asyncio.gather(*[worker() for _ in range(WORKERS)])

    def _drawn(self) -> "Iterator[Callable[[grpc.aio.Channel], Awaitable[None]]]":
        """Which kinds, in which order: a tenth are texts, and beside every three there is a good one."""
        others = [self._unary, self._unary, self._stream, self._tensors, self._json, self._head, self._frames]
        kinds = [self._texts if number % 10 == 0 else self._random.choice(others) for number in range(self._requests)]
        kinds += [self._good] * (self._requests // 3)
        self._random.shuffle(kinds)
        return iter(kinds)

    async def _learn(self, channel: grpc.aio.Channel) -> None:
        """What each good input gives alone and undisturbed."""
        encode: Any = channel.unary_unary(f"{ENCODER}Encode")
        for number in range(_POOL):
            length = self._random.choice([1, 3, 8, 20, 60, 120])
            ids = [self._random.randrange(1000) for _ in range(length)]
            words = " ".join(self._random.choice("abc\u0416\u4e2d\u00e9x") for _ in range(length))
            one = pb.Input(text=words[:200]) if number % 2 else pb.Input(token_ids=pb.TokenIds(ids=ids))
            answer = pb.EncodeResponse.FromString(await encode(pb.EncodeRequest(inputs=[one]).SerializeToString()))
            self._pool.append((one, np.frombuffer(answer.results[0].embedding.data, "<f4")))

    async def _good(self, channel: grpc.aio.Channel) -> None:
        chosen = [self._random.choice(self._pool) for _ in range(self._random.choice([1, 2, 5]))]
        vectors: list[Any]
        if (way := self._random.randrange(3)) == 0:
            raw = pb.EncodeRequest(inputs=[one for one, _ in chosen]).SerializeToString()
            answer = pb.EncodeResponse.FromString(await self._call(channel, f"{ENCODER}Encode", raw, {"OK"}))
            vectors = [np.frombuffer(result.embedding.data, "<f4") for result in answer.results]
        elif way == 1:
            chosen = chosen[:1]
            raw = _infer(chosen[0][0]).SerializeToString()
            inferred = oip.ModelInferResponse.FromString(
                await self._call(channel, f"{INFERENCE}ModelInfer", raw, {"OK"})
            )
            vectors = [np.frombuffer(content, "<f4") for content in inferred.raw_output_contents]
        else:
            # Texts, or token ids: not both in one call.
            chosen = [one for one in chosen if bool(one[0].text) == bool(chosen[0][0].text)]
            inputs = [one.text or list(one.token_ids.ids) for one, _ in chosen]
            status, body = await self._post("/v1/embeddings", json.dumps({"input": inputs}).encode())
            vectors = [entry["embedding"] for entry in json.loads(body)["data"]] if status == 200 else []
        self.seen.good += 1
        expected = [vector for _, vector in chosen]
        if [len(vector) for vector in vectors] != [len(vector) for vector in expected]:
            self.seen.wrong.append(f"{len(vectors)} vectors for {len(expected)} good inputs")
        elif np.abs(np.array(vectors) - np.array(expected)).max() > BOUND:
            self.seen.wrong.append(f"another vector for a good input, of {[one.text[:20] for one, _ in chosen]}")

    async def _unary(self, channel: grpc.aio.Channel) -> None:
        method, raw = self._malformed.unary()
        await self._call(channel, method, raw, _OURS)

    async def _tensors(self, channel: grpc.aio.Channel) -> None:
        await self._call(channel, f"{INFERENCE}ModelInfer", self._malformed.tensors(), _OURS)

    async def _texts(self, channel: grpc.aio.Channel) -> None:
        """Any text is a good one; of what the tokenizer takes for nothing, that is said."""
        text = self._malformed.text()
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        options = pb.EncodeOptions(
            truncation=pb.TRUNCATION_RIGHT if self._random.random() < 0.5 else pb.TRUNCATION_LEFT, token_offsets=True
        )
        request = pb.EncodeRequest(options=options, inputs=[pb.Input(text=f"a{piece}") for piece in pieces])
        raw = await self._call(channel, f"{ENCODER}Encode", request.SerializeToString(), {"OK"})
        if raw and len(pb.EncodeResponse.FromString(raw).results) != len(pieces):
            self.seen.wrong.append(f"texts: another number of results, of {text[:20]!a}")
        status, _ = await self._post("/embed", json.dumps({"inputs": pieces[0], "truncate": True}).encode())
        if status not in (200, 400):
            self.seen.wrong.append(f"/embed: {status} for {pieces[0][:20]!a}")

    async def _call(self, channel: grpc.aio.Channel, method: str, raw: bytes, allowed: set[str]) -> bytes:
        """The bytes of the answer; none if it is refused."""
        code, answer = "OK", b""
        call: Any = channel.unary_unary(method)
        try:
            answer = await call(raw)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        self._ended(code, allowed, f"{method} of {raw[:60].hex()}")
        return answer

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        method, raws = self._malformed.streamed()
        call: Any = channel.stream_stream(method)(_each(raws))
        code, answers = "OK", []
        try:
            answers = [answer async for answer in call]
        except grpc.aio.AioRpcError as error:
            # What grpc.aio's client makes of a stream that was refused while it still wrote: no word of the server's.
            code = "refused" if error.details() == "Internal error from Core" else error.code().name
        self._ended(code, {*_OURS, "refused"}, f"{method} of {[raw[:60].hex() for raw in raws]}")
        if code == "OK" and not 0 <= len(raws) - len(answers) <= (method == STREAMS[0]):
            self.seen.wrong.append(f"{method}: {len(answers)} answers to {len(raws)} messages")
        for raw in answers:
            bug = (
                pb.EncodeStreamResponse.FromString(raw).result.error.code == _INTERNAL
                if method == STREAMS[0]
                else "the server failed" in oip.ModelStreamInferResponse.FromString(raw).error_message
            )
            if bug:
                self.seen.wrong.append(f"{method}: INTERNAL within {[raw[:60].hex() for raw in raws]}")

    async def _json(self, _: grpc.aio.Channel) -> None:
        path, body = self._malformed.json()
        status, answer = await self._post(path, body)
        self._ended(str(status), _statuses(), f"{path} of {body[:80]!r}")
        if status != 200 and "error" not in json.loads(answer):
            self.seen.wrong.append(f"{path}: {status} says no error, of {body[:80]!r}")

    async def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        head = b"POST %s HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        raw = await self._exchange(self._server.http_port, head % (path.encode(), len(body)) + body, LOST_S)
        if not raw.startswith(b"HTTP/1.1 "):
            self.seen.wrong.append(f"{path}: no answer to {body[:80]!r}")
            return 0, b"{}"
        return int(raw[9:12]), raw.partition(b"\r\n\r\n")[2]

    async def _head(self, _: grpc.aio.Channel) -> None:
        raw = head(self._random)
        answer = await self._exchange(self._server.http_port, raw, _HEAD_S)
        status = answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"
        self._ended(status, {*_statuses(), "closed"}, f"HTTP of {raw[:120]!r}")

    async def _frames(self, _: grpc.aio.Channel) -> None:
        """What gRPC itself answers is its own; whether a call became INTERNAL in the server, its metrics tell."""
        raw = frames(self._random)
        await self._exchange(self._server.grpc_port, raw, _HEAD_S)
        self.seen.ends["closed"] += 1

    async def _exchange(self, port: int, raw: bytes, within_s: float) -> bytes:
        """What comes back until the server closes, or for so long."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = bytearray()
        try:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(within_s):
                    writer.write(raw)
                    while piece := await reader.read(1 << 16):
                        answer += piece
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        return bytes(answer)

    def _ended(self, end: str, allowed: set[str], what: str) -> None:
        self.seen.ends[end] += 1
        if end not in allowed:
            self.seen.wrong.append(f"{what}: ended with {end}")


async def _each(raws: list[bytes]) -> Any:
    for raw in raws:
        yield raw


def _statuses() -> set[str]:
    return {"100", "200", "400", "404", "405", "409", "413", "422", "429", "431", "501", "504"}


def _infer(one: pb.Input) -> oip.ModelInferRequest:
    kind = oip.ModelInferRequest
    outputs = [kind.InferRequestedOutputTensor(name="sentence_embedding")]
    if one.WhichOneof("content") == "text":
        contents = oip.InferTensorContents(bytes_contents=[one.text.encode()])
        tensor = kind.InferInputTensor(name="text", datatype="BYTES", shape=[1], contents=contents)
        return kind(inputs=[tensor], outputs=outputs)
    ids = np.array(one.token_ids.ids, "<i8")
    tensor = kind.InferInputTensor(name="input_ids", datatype="INT64", shape=[1, len(ids)])
    return kind(inputs=[tensor], outputs=outputs, raw_input_contents=[ids.tobytes()])


def with_tokenizer(bundle: Path, models_folder: Path) -> Path:
    """A copy of a bundle of at least 1000 ids, by its name and version, that takes texts. Returns `models_folder`."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    characters = [chr(code) for code in (*range(0x21, 0x250), *range(0x400, 0x460), *range(0x4E00, 0x4E80))]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{character}" for character in characters)][:1000]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    content = tokenizer.to_str().encode()
    folder = models_folder / manifest["name"] / str(manifest["version"])
    shutil.copytree(bundle, folder)
    (folder / "tokenizer.json").write_bytes(content)
    file = {
        "name": "tokenizer.json", "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": str(len(content))
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps({**manifest, "files": [*manifest["files"], file]}))
    return models_folder
