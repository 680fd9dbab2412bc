"""The last batches, as values, as a table, and as lines of JSON."""

import json

import grpc
import pytest
from client.command import harken
from client.fake_server import FakeEncoder, Refusal
from harken.v1 import debug_pb2
from harken.v1 import encoder_pb2 as pb
from harken_client import AsyncClient, Batch, BatchMember, HarkenError, InternalError

MS = 1_000_000


def member(length: int, flow: int, waited_ms: int = 5, bulk: bool = False) -> debug_pb2.BatchMember:
    return debug_pb2.BatchMember(
        length=length,
        waited_ns=waited_ms * MS,
        priority=pb.PRIORITY_BULK if bulk else pb.PRIORITY_INTERACTIVE,
        flow=flow,
        outcome=debug_pb2.MEMBER_OUTCOME_ANSWERED,
    )


TOGETHER = debug_pb2.Batch(
    number=41, age_ns=1500 * MS, model="tiny", version=3, lane="1", closed_by="cost", why="one more costs more",
    sequences=5, real_tokens=60, padded_length=16, predicted_ns=30 * MS, alone_ns=40 * MS, compute_ns=31 * MS,
    lane_ns=32 * MS, answered=4, failed=1,
    members=[member(16, 1), member(15, 2, 3, bulk=True), member(9, 1, 7), member(10, 1)],
)  # fmt: skip
SPLIT = debug_pb2.Batch(
    number=42, age_ns=20 * MS, model="tiny", version=3, lane="wide", closed_by="backlog", why="nobody else waited",
    sequences=3, real_tokens=6, padded_length=3, predicted_ns=3 * MS, alone_ns=3 * MS, lane_ns=9 * MS, split=True,
    answered=1, left=1, waits_again=1, members=[member(3, 1), member(2, 1), member(1, 1)],
)  # fmt: skip
ALONE = debug_pb2.Batch(
    number=43, age_ns=MS, model="tiny", version=3, lane="0", closed_by="lanes", why="left to others", sequences=1,
    real_tokens=8, padded_length=8, predicted_ns=8 * MS, alone_ns=8 * MS, compute_ns=9 * MS, lane_ns=9 * MS,
    answered=1, members=[member(8, 1)],
)  # fmt: skip


async def test_batches_come_as_values_in_seconds(fake: FakeEncoder, target: str) -> None:
    fake.batches = [TOGETHER, SPLIT]
    async with AsyncClient(target) as client:
        (batch,) = await client.explain_batches(1)
        assert len(await client.explain_batches()) == 2
    assert fake.explained == [1, 20]
    assert batch == Batch(
        number=42, age_s=0.02, model="tiny", version=3, lane="wide", closed_by="backlog", why="nobody else waited",
        sequences=3, real_tokens=6, padded_length=3, predicted_s=0.003, alone_s=0.003, compute_s=0.0, lane_s=0.009,
        split=True, answered=1, failed=0, left=1, waits_again=1,
        members=tuple(BatchMember(length, 0.005, "interactive", 1, "answered") for length in (3, 2, 1)),
    )  # fmt: skip
    assert batch.padding_share == pytest.approx(1 - 6 / 9)
    assert batch.saved_share == 0.0


@pytest.mark.parametrize("last", [0, -1, 4097])
async def test_a_count_that_no_server_could_serve_is_refused_before_the_call(last: int, target: str) -> None:
    async with AsyncClient(target) as client:
        with pytest.raises(ValueError, match=f"last is between 1 and 4096, not {last}"):
            await client.explain_batches(last)


async def test_an_outcome_from_a_newer_server_is_an_error_not_a_guess(fake: FakeEncoder, target: str) -> None:
    newer = debug_pb2.BatchMember(length=1, priority=pb.PRIORITY_BULK)
    newer.outcome = 99  # type: ignore[assignment]  # open enums take what the stubs do not know
    fake.batches = [debug_pb2.Batch(sequences=1, members=[newer])]
    async with AsyncClient(target) as client:
        with pytest.raises(InternalError, match="unknown to this client: 99"):
            await client.explain_batches()


async def test_a_server_that_keeps_none_says_so(fake: FakeEncoder, target: str) -> None:
    fake.batches = Refusal(grpc.StatusCode.UNIMPLEMENTED, "turned off", "TURNED_OFF")
    async with AsyncClient(target) as client:
        with pytest.raises(HarkenError) as caught:
            await client.explain_batches()
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNIMPLEMENTED, "TURNED_OFF")
    finished = harken("explain-batches", "-s", target)
    expected = "harken: UNIMPLEMENTED (TURNED_OFF): turned off\n"
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "", expected)


def test_the_command_shows_who_rode_with_whom_and_why_the_newest_last(fake: FakeEncoder, target: str) -> None:
    fake.batches = [TOGETHER, SPLIT, ALONE]
    finished = harken("explain-batches", "--last", "3", "-s", target)
    assert (finished.returncode, finished.stderr) == (0, "")
    rows: list[list[str]] = [["", "", ""]]
    for line in finished.stdout.splitlines():
        if line.startswith("│"):
            cells = zip(rows[-1], line.split("│")[1:], strict=False)
            rows[-1] = [f"{cell} {part.strip()}".strip() for cell, part in cells]
        elif line.startswith("├"):
            rows.append(["", "", ""])
    assert rows == [
        [
            "41, lane 1 1.5 s ago tiny/3",
            "5 sequences call 1: 16* 9 10, waited 5.0 ms to 7.0 ms call 2 (bulk): 15, waited 3.0 ms "
            "and 1 more 1 failed cost: one more costs more",
            "padded to 16, 25 % padding predicted 30.0 ms took 32.0 ms alone 40.0 ms, saves 25 %",
        ],
        [
            "42, lane wide 20.0 ms ago tiny/3",
            "3 sequences call 1: 3* 2 1, waited 5.0 ms 1 left while it ran, 1 wait again "
            "the engine failed on them together, so the batch was split backlog: nobody else waited",
            "padded to 3, 33 % padding predicted 3.0 ms took 9.0 ms alone 3.0 ms, saves 0 %",
        ],
        [
            "43, lane 0 1.0 ms ago tiny/3",
            "one sequence call 1: 8*, waited 5.0 ms lanes: left to others",
            "padded to 8, 0 % padding predicted 8.0 ms took 9.0 ms",
        ],
    ]
    assert "* led the batch" in finished.stdout


def test_json_is_a_line_for_each_batch_with_every_member(fake: FakeEncoder, target: str) -> None:
    fake.batches = [TOGETHER, ALONE]
    finished = harken("explain-batches", "--json", "-s", target)
    assert (finished.returncode, finished.stderr) == (0, "")
    first, second = [json.loads(line) for line in finished.stdout.splitlines()]
    assert (first["number"], second["number"]) == (41, 43)
    assert (first["padding_share"], first["saved_share"]) == (0.25, 0.25)
    assert first["members"][1] == {
        "length": 15, "waited_s": 0.003, "priority": "bulk", "flow": 2, "outcome": "answered",
    }  # fmt: skip
    assert [one["length"] for one in first["members"]] == [16, 15, 9, 10]
    assert first["sequences"] == 5


def test_a_server_that_ran_nothing_yet_is_no_error(target: str) -> None:
    for option, expected in (([], "no batch has run yet\n"), (["--json"], "")):
        finished = harken("explain-batches", *option, "-s", target)
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, expected, "")


@pytest.mark.parametrize("last", ["0", "4097", "many"])
def test_a_wrong_count_is_wrong_usage(last: str) -> None:
    finished = harken("explain-batches", "--last", last)
    assert finished.returncode == 2
    assert "--last" in finished.stderr
    assert "Traceback" not in finished.stderr
