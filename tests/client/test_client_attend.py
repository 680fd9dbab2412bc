"""`attend`: what is asked, how the parts of an answer become arrays, and what does not fit together."""

import numpy as np
import pytest
from client.fake_server import DRAINING, FakeEncoder, Refusal
from grpc import StatusCode
from harken.v1 import encoder_pb2 as pb
from harken_client import Client, FailedPrecondition, InternalError, Unavailable
from numpy.typing import NDArray


def tensor(array: NDArray[np.float32]) -> pb.Tensor:
    return pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=array.shape, data=array.astype("<f4").tobytes())


def rows(
    kind: pb.MapKind.ValueType, first: int, array: NDArray[np.float32], layer: int = 0, head: int = 0
) -> pb.AttendResponse:
    return pb.AttendResponse(rows=pb.AttentionRows(kind=kind, layer=layer, head=head, first=first, rows=tensor(array)))


def links(layer: int, first: int, tokens: list[list[int]]) -> pb.AttendResponse:
    weights = np.array(tokens, np.float32) / np.float32(4 * layer)
    part = pb.AttentionLinks(layer=layer, first=first, tokens=np.ravel(tokens).tolist(), weights=tensor(weights))
    return pb.AttendResponse(links=part)


MAPS: NDArray[np.float32] = np.arange(2 * 1 * 3 * 3, dtype=np.float32).reshape(2, 1, 3, 3) / np.float32(18)
TERMS: NDArray[np.float32] = np.array([[0.1, 0.2], [0.0, -0.1], [0.3, 0.0]], np.float32)
OFFSETS = pb.TokenOffsets(starts=[0, 0, 0], ends=[0, 1, 0])
TEXT = pb.AttendedText(tokens=["[CLS]", "a", "[SEP]"], ids=[1, 2, 3], offsets=OFFSETS)


def answer() -> list[pb.AttendResponse]:
    summary = pb.AttendSummary(
        model="tiny", version=3, input=TEXT, other=pb.AttendedText(ids=[7, 8]), layers=[1, 4], heads=[2],
        entropy=tensor(np.ones((2, 1), np.float32)), similarity=0.5, parts=8,
        timings=pb.Timings(compute_ns=1_000_000, total_ns=2_000_000),
    )  # fmt: skip
    return [
        pb.AttendResponse(summary=summary),
        rows(pb.MAP_KIND_HEAD, 0, MAPS[0, 0, :2], 1, 2),
        rows(pb.MAP_KIND_HEAD, 2, MAPS[0, 0, 2:], 1, 2),
        rows(pb.MAP_KIND_HEAD, 0, MAPS[1, 0], 4, 2),
        rows(pb.MAP_KIND_ROLLOUT, 0, np.eye(3).astype(np.float32)),
        rows(pb.MAP_KIND_SIMILARITY, 0, TERMS),
        links(1, 0, [[0], [1]]),
        links(1, 2, [[2]]),
        links(4, 0, [[2], [1], [0]]),
    ]


def test_the_parts_become_arrays(fake: FakeEncoder, target: str) -> None:
    fake.attends = [answer()]
    with Client(target) as client:
        attention = client.attend("a", [7, 8], layers=[1, 4], heads=[2], maps=True, rollout=True, top_k=1)
    assert attention.maps is not None
    np.testing.assert_array_equal(attention.maps, MAPS)
    np.testing.assert_array_equal(attention.rollout, np.eye(3))
    np.testing.assert_array_equal(attention.map(4, 2), MAPS[1, 0])
    assert attention.pair is not None
    np.testing.assert_array_equal(attention.pair.contributions, TERMS)
    assert (attention.pair.similarity, attention.pair.text, attention.pair.ids.tolist()) == (0.5, None, [7, 8])
    assert attention.pair.offsets is None
    assert (attention.text, attention.tokens, attention.model, attention.version) == (
        "a", ("[CLS]", "a", "[SEP]"), "tiny", 3,
    )  # fmt: skip
    assert attention.offsets is not None
    assert attention.offsets.tolist() == [[0, 0], [0, 1], [0, 0]]
    assert attention.links is not None
    assert attention.links.tokens.tolist() == [[[0], [1], [2]], [[2], [1], [0]]]
    assert attention.links.weights.tolist() == [[[0], [0.25], [0.5]], [[0.125], [0.0625], [0]]]
    assert attention.timings is not None
    assert attention.timings.compute_s == 0.001
    assert (attention.mean, attention.received) == (None, None)
    assert repr(attention) == "<Attention of 3 tokens by tiny/3: maps [2, 1, 3, 3], rollout [3, 3]>"
    (asked,) = fake.attended
    assert asked == pb.AttendRequest(
        input=pb.Input(text="a"), other=pb.Input(token_ids=pb.TokenIds(ids=[7, 8])), layers=[1, 4], heads=[2],
        maps=True, rollout=True, top_k=1, truncation=pb.TRUNCATION_REFUSE,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"layers": [0]}, {"heads": [1], "truncate": True}])
def test_without_saying_what_everything_but_means_and_links_is_asked_for(
    fake: FakeEncoder, target: str, options: dict[str, object]
) -> None:
    fake.attends = [answer()]
    with Client(target) as client:
        client.attend("a", **options)  # type: ignore[arg-type]  # of several types
    (asked,) = fake.attended
    assert (asked.maps, asked.mean, asked.rollout, asked.received, asked.entropy) == (True, False, True, True, True)
    assert asked.top_k == 0


def test_a_server_that_drains_is_asked_again_and_nothing_of_a_broken_answer_stays(
    fake: FakeEncoder, target: str
) -> None:
    fake.attends = [DRAINING, answer()]
    with Client(target) as client:
        attention = client.attend("a")
    assert attention.maps is not None
    assert len(fake.attended) == 2
    fake.attends = [DRAINING]
    with Client(target, max_attempts=1) as client, pytest.raises(Unavailable):
        client.attend("a")


def test_a_model_that_cannot_is_an_error_of_its_own(fake: FakeEncoder, target: str) -> None:
    fake.attends = [Refusal(StatusCode.FAILED_PRECONDITION, "export it again", "NO_ATTENTION")]
    with Client(target) as client, pytest.raises(FailedPrecondition, match="export it again") as error:
        client.attend("a")
    assert error.value.reason == "NO_ATTENTION"


def test_an_answer_that_does_not_fit_together_is_an_error_and_no_array(fake: FakeEncoder, target: str) -> None:
    whole = answer()
    strange = [
        whole[:-1],  # not all of it
        whole[1:],  # no summary
        [whole[0], rows(pb.MAP_KIND_HEAD, 0, MAPS[0, 0], 2, 2), *whole[2:]],  # a layer that was not chosen
        [whole[0], rows(pb.MAP_KIND_HEAD, 2, MAPS[0, 0], 1, 2), *whole[2:]],  # rows beyond the last
        [whole[0], rows(pb.MAP_KIND_UNSPECIFIED, 0, MAPS[0, 0]), *whole[2:]],
        [whole[0], rows(pb.MAP_KIND_HEAD, 0, TERMS, 1, 2), *whole[2:]],  # as wide as another map
        [*whole[:-1], links(2, 0, [[2], [1], [0]])],  # links of a layer that was not chosen
        [*whole[:-1], links(4, 1, [[2], [1], [0]])],  # of tokens beyond the last
        [*whole[:-1], links(4, 0, [[2, 1], [1, 0], [0, 2]])],  # more of each than before
        [],
    ]
    with Client(target) as client:
        for messages in strange:
            fake.attends = [messages]
            with pytest.raises(InternalError):
                client.attend("a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": []}, "layers is None, for all of them, or not empty"),
        ({"heads": [-1]}, r"heads\[0\] is between 0"),
        ({"top_k": -1}, "top_k is between 0"),
        ({"truncate": "middle"}, "truncate is one of"),
    ],
)
def test_what_cannot_be_sent_is_told_at_once(target: str, options: dict[str, object], said: str) -> None:
    with Client(target) as client, pytest.raises(ValueError, match=said):
        client.attend("a", **options)  # type: ignore[arg-type]  # of several types
