"""What an Attend may answer in one message, and what is blamed where it is more."""

import pytest
from harken_server.attend import largest
from harken_server.errors import AnswerTooLarge, InvalidRequest
from harken_server.execution.reductions import Wish
from harken_server.rpc.attend import check_summary


def test_what_stands_in_the_summary_is_bounded_and_links_and_maps_are_not_in_it() -> None:
    whole = Wish(tuple(range(24)), tuple(range(16)), maps=True, received=True, entropy=True, top_k=2048)
    check_summary(whole.sizes(2047))
    with pytest.raises(InvalidRequest) as error:
        check_summary(whole.sizes(2048))
    size_bytes = 4 * 24 * 16 * 2049
    assert error.value.problems == (AnswerTooLarge("received", size_bytes, 3 << 20, maps=True),)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (Wish((0,), (0,), rollout=True), "other"),
        (Wish((0,), (0,), maps=True, top_k=20), "maps"),
        (Wish((0,), (0,), received=True, top_k=80), "top_k"),
    ],
)
def test_the_field_to_blame_is_that_of_the_most_numbers(wish: Wish, field: str) -> None:
    assert largest(wish.sizes(100), ("input", "other")) == field
