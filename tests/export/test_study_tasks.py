"""The tasks ask for what they say, as far back as they say."""

import torch
from harken_export.study.tasks import TASKS, AssociativeRecall, Copy
from harken_export.study.training import Course, lesson
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

Seeds = st.integers(0, 2**32 - 1)


@given(distance=st.integers(0, 60), seed=Seeds)
def test_recall_asks_each_key_for_the_value_that_was_joined_with_it(distance: int, seed: int) -> None:
    task = AssociativeRecall()
    examples = task.draw(5, distance, Generator().manual_seed(seed))
    assert examples.ids.shape == (5, task.length(distance))
    for row, answers in zip(examples.ids.tolist(), examples.answers.tolist(), strict=True):
        pairs, others, asked = row[:4], row[4:-4], row[-4:]
        values = dict(divmod(pair - task.keys, task.values) for pair in pairs)
        assert sorted(asked) == sorted(values)
        assert len(set(values.values())) == task.pairs == 1 / task.chance
        assert answers == [values[key] for key in asked]
        assert len(others) == distance
        # What lies between holds no key and no value.
        assert all(task.keys + task.keys * task.values <= other < task.vocab_size for other in others)


@given(distance=st.integers(8, 60), seed=Seeds)
def test_copy_asks_for_the_symbol_exactly_so_many_tokens_before(distance: int, seed: int) -> None:
    task = Copy()
    examples = task.draw(5, distance, Generator().manual_seed(seed))
    assert examples.ids.shape == (5, task.length(distance))
    marks = torch.arange(task.length(distance) - 8, task.length(distance))
    assert torch.equal(examples.answers, examples.ids[:, marks - distance])
    assert (examples.ids[:, marks] == task.alphabet + 1).all()
    assert (examples.ids[:, 8:-8] == task.alphabet).all()
    assert (examples.answers < task.alphabet).all()


def test_the_shortest_distance_comes_alone_then_the_others_one_after_the_other_and_then_all() -> None:
    course = Course(distances=(8, 16, 32, 64), steps=600)
    task = TASKS["recall"]
    generator = Generator().manual_seed(0)
    drawn = [lesson(task, course, step, generator).ids.shape[1] - 8 for step in range(600)]
    assert set(drawn[:200]) == {0}
    assert max(drawn[:300]) == 16
    assert set(drawn[400:]) == {0, 8, 16, 32, 64}
    assert min(drawn[400:].count(distance) for distance in course.distances) > 20


def test_taught_directly_there_is_no_other_distance() -> None:
    course = Course(distances=(16,), steps=60, gradually=False)
    drawn = {lesson(TASKS["copy"], course, step, Generator().manual_seed(step)).ids.shape[1] - 8 for step in range(60)}
    assert drawn == {16}
