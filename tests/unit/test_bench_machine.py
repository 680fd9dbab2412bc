"""Who took the CPU, and the arithmetic of rates."""

import pytest
from bench.batching import Policy
from bench.closed_loop import without_calls
from bench.contestants import Load
from bench.machine import CpuTimes, busy_s, foreign_share
from bench.measure import Ceiling
from harken_client.load.pacer import Call

STAT = "cpu  100 20 300 4000 50 7 8 900 11 12\ncpu0 1 2 3 4 5 6 7 8 9 10\n"


def test_busy_is_user_nice_system_and_stolen_of_all_cores() -> None:
    assert busy_s(STAT, ticks_per_s=100) == pytest.approx((100 + 20 + 300 + 900) / 100)


@pytest.mark.parametrize("text", ["", "intr 1 2 3 4 5 6 7 8 9", "cpu  1 2 3"])
def test_what_is_no_stat_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="/proc/stat"):
        busy_s(text, ticks_per_s=100)


def test_foreign_is_what_neither_idled_nor_was_ours() -> None:
    before = CpuTimes(at_s=10.0, machine_s=100.0, own_s=40.0)
    # Two cores for 8 s: 16 s in all, 14 of them busy, 13 of those ours.
    assert foreign_share(before, CpuTimes(18.0, 114.0, 53.0), cores=2) == pytest.approx(1 / 16)


def test_ticks_that_round_against_the_machine_are_no_foreign_time() -> None:
    before = CpuTimes(at_s=0.0, machine_s=0.0, own_s=0.0)
    assert foreign_share(before, CpuTimes(8.0, 15.98, 16.0), cores=2) == 0.0


def test_the_calls_cpu_is_spread_over_the_cores_and_taken_off() -> None:
    # 4 ms of both cores a sequence, of which 2 ms of one core are the call's.
    assert without_calls(250.0, 0.002, cores=2) == pytest.approx(1 / 0.003)
    with pytest.raises(ValueError, match="leave nothing"):
        without_calls(250.0, 0.008, cores=2)


def test_a_limit_that_gains_too_little_is_void_and_says_its_gain() -> None:
    ceiling = Ceiling(Policy(512), per_s=231.0, one_by_one_per_s=210.0)
    assert ceiling.void(1.05) == ""
    assert ceiling.void(1.2) == "the limit is 1.10x one by one, not 1.2x"
    assert str(ceiling) == "limit: all sorted into 512 tokens, 1.10x one by one"


def test_a_load_tells_classes_late_answers_and_refusals_apart() -> None:
    calls = [
        Call(0.0, 0.0, 0.1, 1, 16),
        Call(0.1, 0.2, 0.5, 1, 400),  # 0.3 s after its send, 0.4 s after the moment it was meant to be sent
        Call(0.2, 0.2, 0.21, 0, 0, ("RESOURCE_EXHAUSTED BACKLOG_FULL",)),
        Call(0.3, 0.3, 0.6, 0, 0, ("DEADLINE_EXCEEDED",)),
    ]
    load = Load(calls, per_s=1.0, duration_s=2.0, cpu_s=0.5, answered=2)
    assert load.latencies_s() == pytest.approx([0.1, 0.4])
    assert load.latencies_s(400) == pytest.approx([0.4])
    assert load.refusals_s() == pytest.approx([0.01])
    assert load.goodput_per_s(0.35) == 0.5
    assert load.failures == {"RESOURCE_EXHAUSTED BACKLOG_FULL": 1, "DEADLINE_EXCEEDED": 1}
    assert load.late_sends == 1
