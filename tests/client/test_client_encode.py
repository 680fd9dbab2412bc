"""AsyncClient.encode against a fake server over real gRPC."""

import grpc
import numpy as np
import pytest
from client.fake_server import BAD, BUSY, HIDDEN, FakeEncoder, Refusal, vector
from harken.v1 import encoder_pb2 as pb
from harken_client import (
    AsyncClient,
    FieldViolation,
    HarkenError,
    InvalidInput,
    Match,
    Overloaded,
    Timings,
)


async def test_texts_and_token_ids_become_one_row_each_in_order(target: str) -> None:
    async with AsyncClient(target) as client:
        rows = await client.encode(["one", [101, 7, 102], np.array([5, 6]), "two"])
    expected = np.stack([vector("one"), vector((101, 7, 102)), vector((5, 6)), vector("two")])
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.float32


async def test_tokens_output_gives_one_array_per_input(target: str) -> None:
    async with AsyncClient(target) as client:
        arrays = await client.encode(["one two", [1]], output="tokens")
    assert [array.shape for array in arrays] == [(4, HIDDEN), (1, HIDDEN)]
    np.testing.assert_array_equal(arrays[0], np.tile(vector("one two"), (4, 1)))


async def test_no_inputs_give_no_rows_of_the_models_width(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target) as client:
        assert (await client.encode([])).shape == (0, HIDDEN)
        assert await client.encode([], output="tokens") == []
    assert fake.calls == []


async def test_detailed_answers_carry_length_timings_and_model(target: str) -> None:
    async with AsyncClient(target) as client:
        (encoding,) = await client.encode_detailed([" ".join("abcdefghijklmnopqrst")], truncate=True)
    text = " ".join("abcdefghijklmnopqrst")
    np.testing.assert_array_equal(encoding.vector, vector(text))
    assert (encoding.tokens, encoding.truncated, encoding.model, encoding.version) == (16, True, "tiny", 3)
    assert encoding.timings == Timings(1e-9, 2e-9, 3e-9, 4e-9, 5e-9, 15e-9)


async def test_what_is_asked_reaches_the_server(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target, model="tiny", version=2, priority="bulk") as client:
        await client.encode(["a"], truncate=True)
        await client.encode(["a"], model="tiny", output="tokens", priority="interactive")
    bulk = pb.EncodeOptions(output=pb.OUTPUT_SENTENCE, truncation=pb.TRUNCATION_RIGHT, priority=pb.PRIORITY_BULK)
    tokens = pb.EncodeOptions(
        output=pb.OUTPUT_TOKENS,
        truncation=pb.TRUNCATION_REFUSE,
        priority=pb.PRIORITY_INTERACTIVE,
    )
    inputs = [pb.Input(text="a")]
    assert fake.calls == [
        pb.EncodeRequest(model="tiny", version=2, options=bulk, inputs=inputs),
        pb.EncodeRequest(model="tiny", version=0, options=tokens, inputs=inputs),
    ]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("one text", "encode([text])"),
        ([b"bytes"], "not bytes"),
        ([None], "not None"),
        ([[1.5]], "token ids"),
    ],
)
async def test_a_wrong_type_is_named_before_any_call(inputs: object, message: str, target: str) -> None:
    async with AsyncClient(target) as client:
        with pytest.raises(TypeError) as caught:
            await client.encode(inputs)  # type: ignore[call-overload]  # what is tested
    assert message in str(caught.value)


async def test_an_unknown_output_and_an_endless_timeout_are_refused(target: str) -> None:
    async with AsyncClient(target) as client:
        with pytest.raises(ValueError, match="output is one of 'sentence', 'tokens', not 'word'"):
            await client.encode(["a"], output="word")  # type: ignore[call-overload]  # what is tested
        with pytest.raises(ValueError, match="number of seconds above 0, at most 1e\\+09, not inf"):
            await client.encode(["a"], timeout_s=float("inf"))
    with pytest.raises(ValueError, match="not None"):
        AsyncClient(target, timeout_s=None)  # type: ignore[arg-type]  # what is tested


async def test_long_lists_are_split_by_count_and_keep_their_order(fake: FakeEncoder, target: str) -> None:
    texts = [f"text {i}" for i in range(2500)]
    async with AsyncClient(target) as client:
        rows = await client.encode(texts)
    np.testing.assert_array_equal(rows, np.stack([vector(text) for text in texts]))
    assert [len(call.inputs) for call in fake.calls] == [1024, 1024, 452]
    assert fake.models_asked == 1


async def test_lists_are_split_by_request_bytes(fake: FakeEncoder, target: str) -> None:
    texts = [str(i) * 10_000 for i in range(10)]
    async with AsyncClient(target, max_message_bytes=40_000) as client:
        rows = await client.encode(texts, truncate=True)
    np.testing.assert_array_equal(rows, np.stack([vector(text) for text in texts]))
    assert [len(call.inputs) for call in fake.calls] == [3, 3, 3, 1]
    assert all(call.ByteSize() <= 40_000 for call in fake.calls)


async def test_lists_are_split_by_the_bytes_of_their_answers(fake: FakeEncoder, target: str) -> None:
    inputs = [[7] * 16 for _ in range(100)]  # an answer takes 16 x 8 x 4 bytes
    async with AsyncClient(target, max_message_bytes=16_384) as client:
        arrays = await client.encode(inputs, output="tokens")
        arrays += await client.encode(inputs, output="tokens")
    assert [array.shape for array in arrays] == [(16, HIDDEN)] * 200
    assert [len(call.inputs) for call in fake.calls] == [18, 18, 18, 18, 18, 10] * 2
    assert fake.models_asked == 1  # and remembered


async def test_an_input_too_large_for_any_call_is_refused_with_its_index(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target, max_message_bytes=10_000) as client:
        with pytest.raises(InvalidInput) as caught:
            await client.encode(["a", "b" * 10_000])
    assert (caught.value.index, caught.value.reason) == (1, "INPUT_TOO_LARGE")
    assert [len(call.inputs) for call in fake.calls] == []


async def test_errors_of_a_split_list_name_the_callers_index(fake: FakeEncoder, target: str) -> None:
    fields = ("inputs[1].text", "inputs[2].token_ids.ids[4]")
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "inputs[1].text is empty", "BAD", pushback_ms=-1, fields=fields)
    fake.refuse_on_call = {2: refusal}
    async with AsyncClient(target, max_inputs=4) as client:
        with pytest.raises(InvalidInput) as caught:
            await client.encode([f"t{i}" for i in range(10)])
    error = caught.value
    assert (error.code, error.reason, error.index) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD", 5)
    assert error.message == "inputs[5].text is empty"
    assert error.violations == (
        FieldViolation("inputs[5].text", "inputs[5].text is bad"),
        FieldViolation("inputs[6].token_ids.ids[4]", "inputs[6].token_ids.ids[4] is bad"),
    )
    assert len(fake.calls) == 2


async def test_the_first_failed_input_raises_with_its_index(fake: FakeEncoder, target: str) -> None:
    fake.refuse_texts = {"t5": BAD, "t7": BAD}
    async with AsyncClient(target, max_inputs=3) as client:
        with pytest.raises(InvalidInput) as caught:
            await client.encode([f"t{i}" for i in range(9)])
    assert (caught.value.index, caught.value.reason) == (5, "BAD_INPUT")


async def test_failed_inputs_stand_in_place_where_errors_are_returned(fake: FakeEncoder, target: str) -> None:
    fake.refuse_texts = {"t1": BAD, "t4": BUSY}
    async with AsyncClient(target, max_inputs=3) as client:
        outcomes = await client.encode_detailed([f"t{i}" for i in range(6)], return_errors=True)
    failed = {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, HarkenError)}
    assert {i: (type(e), e.reason, e.index, e.retry_after_s) for i, e in failed.items()} == {
        1: (InvalidInput, "BAD_INPUT", 1, None),
        4: (Overloaded, "BACKLOG_FULL", 4, 0.01),
    }
    assert len(outcomes) == 6


async def test_similarity_asks_as_it_was_told_and_gives_matches(fake: FakeEncoder, target: str) -> None:
    async with AsyncClient(target) as client:
        assert await client.similarity("q", ["a", [1, 2]], top_k=3, truncate="left") == [Match(1, 0.5)]
    assert fake.similarities == [
        pb.SimilarityRequest(
            options=pb.EncodeOptions(
                output=pb.OUTPUT_SENTENCE, truncation=pb.TRUNCATION_LEFT, priority=pb.PRIORITY_INTERACTIVE
            ),
            query=pb.Input(text="q"),
            candidates=[pb.Input(text="a"), pb.Input(token_ids=pb.TokenIds(ids=[1, 2]))],
            top_k=3,
        )
    ]
