"""Calls of harken's own API. Each checks its answer, and returns how it ended or raises what the client does."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from random import Random
from typing import Any

import grpc
from harken.v1 import encoder_pb2 as pb
from harken_client import Chunking, InvalidInput
from soak.edges import Edges
from soak.inputs import FORMS, PLAIN, PLAIN_BOUND, Known, Pool, Wrong, close
from support.calls import ids, text
from support.web import MODEL

_BAD = (
    (b"\xff\xff\xff", "INVALID_ARGUMENT"),
    (pb.EncodeRequest(), "INVALID_ARGUMENT"),
    (pb.EncodeRequest(inputs=ids([])), "INVALID_ARGUMENT"),
    (pb.EncodeRequest(inputs=ids([101], [101, 30522])), "INVALID_ARGUMENT"),
    (pb.EncodeRequest(inputs=ids([101] * 513)), "INVALID_ARGUMENT"),
    (pb.EncodeRequest(inputs=text("good", "")), "INVALID_ARGUMENT"),
    (pb.EncodeRequest(inputs=text("word " * 600)), "INVALID_ARGUMENT"),
    (pb.EncodeRequest(inputs=text(*["a"] * 1025)), "INVALID_ARGUMENT"),
    (pb.EncodeRequest(inputs=text("a"), options=pb.EncodeOptions(dimensions=385)), "INVALID_ARGUMENT"),
    (pb.EncodeRequest(model="other", inputs=text("a")), "NOT_FOUND"),
)
_BAD_INPUTS: tuple[str | list[int], ...] = ("", [], [30522], [101] * 513)
_MOST_IN_A_STREAM = 12


async def encode(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """Sentence vectors in one of their forms."""
    known, form = pool.draw(random, random.randint(1, 3)), random.choice(FORMS)
    contents = [one.content for one in known]
    got = await edges.client.encode_detailed(contents, timeout_s=timeout_s, priority=_priority(random), **form.options)
    for encoding, one in zip(got, known, strict=True):
        form.check(encoding, one)
    return "OK"


async def encode_tokens(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """Token vectors."""
    (one,) = pool.draw(random, 1)
    (tokens,) = await edges.client.encode([one.content], output="tokens", timeout_s=timeout_s)
    close(tokens, one.tokens, f"tokens of {one.content!r:.40}", PLAIN_BOUND)
    return "OK"


async def encode_chunks(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """The mean of a long text's chunks."""
    long, expected = pool.draw_long(random)
    vectors = await edges.client.encode([long], chunking=Chunking(32), timeout_s=timeout_s, priority="bulk")
    close(vectors[0], expected, f"chunks of {long:.40}")
    return "OK"


async def similarity(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """A query and three candidates."""
    query, *candidates = pool.draw(random, 4)
    matches = await edges.client.similarity(query.content, [one.content for one in candidates], timeout_s=timeout_s)
    for match in matches:
        expected = candidates[match.index].sentence @ query.sentence
        close(match.score, expected, f"similarity of {query.content!r:.40}")
    return "OK"


async def a_version(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """A version by its number, which may be retired meanwhile."""
    version = random.choice(await edges.client.models(timeout_s=timeout_s)).version
    (one,) = pool.draw(random, 1)
    (encoding,) = await edges.client.encode_detailed([one.content], version=version, timeout_s=timeout_s)
    if encoding.version != version:
        raise Wrong(f"version {encoding.version} answered for {version}")
    PLAIN.check(encoding, one)
    return "OK"


async def new_connection(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """One call over a connection of its own."""
    (one,) = pool.draw(random, 1)
    async with edges.new_client() as client:
        (encoding,) = await client.encode_detailed([one.content], timeout_s=timeout_s)
    PLAIN.check(encoding, one)
    return "OK"


async def stream(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """Read to its end; some of its inputs are bad."""
    known = pool.draw(random, random.randint(1, _MOST_IN_A_STREAM))
    bad = {number: random.choice(_BAD_INPUTS) for number in range(len(known)) if random.random() < 0.1}
    seen = [number async for number in _answers(edges, known, bad, random, timeout_s)]
    if sorted(seen) != list(range(len(known))):
        raise Wrong(f"a stream of {len(known)} answered {sorted(seen)}")
    return "OK"


async def broken_stream(edges: Edges, pool: Pool, random: Random, timeout_s: float) -> str:
    """Broken off after some answers, or none."""
    known = pool.draw(random, _MOST_IN_A_STREAM)
    leaves_after = random.randrange(_MOST_IN_A_STREAM)
    async with aclosing(_answers(edges, known, {}, random, timeout_s)) as answers:
        seen = 0
        async for _ in answers:
            if (seen := seen + 1) > leaves_after:
                break
    return "left"


async def _answers(
    edges: Edges, known: list[Known], bad: dict[int, str | list[int]], random: Random, timeout_s: float
) -> Any:
    """The positions of the answers of a stream, each checked; in the places of `bad` their inputs are sent."""
    contents = [bad.get(number, one.content) for number, one in enumerate(known)]
    source = _source(contents) if random.random() < 0.5 else contents
    async with aclosing(edges.client.encode_stream(source, ordered=random.random() < 0.5, timeout_s=timeout_s)) as run:
        async for result in run:
            if result.index in bad:
                if not isinstance(result.error, InvalidInput):
                    raise Wrong(f"bad input {bad[result.index]!r:.40} of a stream: {result.error}")
            elif result.encoding is None:
                assert result.error is not None
                raise result.error
            else:
                PLAIN.check(result.encoding, known[result.index])
            yield result.index


async def _source(contents: list[str | list[int]]) -> AsyncIterator[str | list[int]]:
    for content in contents:
        yield content


async def explain(edges: Edges, _: Pool, random: Random, timeout_s: float) -> str:
    """The last batches."""
    batches = await edges.client.explain_batches(random.choice([1, 20, 256]), timeout_s=timeout_s)
    if any(one.model != MODEL for one in batches):
        raise Wrong(f"batches of { ({one.model for one in batches}) }")
    return "OK"


async def bad_encode(edges: Edges, _: Pool, random: Random, timeout_s: float) -> str:
    """What is refused, with its code."""
    request, expected = random.choice(_BAD)
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    method: Any = edges.channel.unary_unary("/harken.v1.Encoder/Encode")
    try:
        await method(raw, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code().name != expected:
            raise Wrong(f"{raw!r:.60} was refused with {error.code().name}, not {expected}") from None
        return expected
    raise Wrong(f"{raw!r:.60} was answered")


def _priority(random: Random) -> Any:
    return random.choice(["interactive", "interactive", "bulk"])
