"""LangChain, unmodified, over harken_client.langchain."""

from typing import Any

import numpy as np
import pytest
from support.contract import close, equal, run_client
from support.server import RunningServer


@pytest.fixture(scope="module")
def found(minilm_server: RunningServer) -> Any:
    return run_client("langchain", "langchain_embeddings.py", minilm_server.target)


def test_its_own_standard_tests_pass(found: Any) -> None:
    assert found["standard"] == dict.fromkeys(
        [
            "test_init", "test_init_from_env", "test_no_overrides_DO_NOT_OVERRIDE",
            "test_embed_query", "test_embed_documents", "test_aembed_query", "test_aembed_documents",
        ],
        "passed",
    )  # fmt: skip


def test_a_query_is_what_the_own_client_gets_to_the_bit(found: Any, expected: Any) -> None:
    equal(found["queries"], expected["texts"])


def test_documents_come_in_their_order_however_many(found: Any, expected: Any) -> None:
    close(found["documents"], expected["texts"])
    assert found["many"] == 3000
    assert found["none"] == []


def test_each_event_loop_gets_the_same_without_a_thread(found: Any, expected: Any) -> None:
    for documents, queries in found["in_loops"]:
        close(documents, expected["texts"])
        close(queries, expected["texts"])


def test_fewer_dimensions_are_normalised_again(found: Any, expected: Any) -> None:
    first = expected["texts"][0][:64]
    close([found["short"]], [first / np.linalg.norm(first)])


def test_what_is_too_long_loses_its_end(found: Any) -> None:
    whole, cut = found["long"]
    assert whole == cut


def test_a_vector_store_finds_the_nearest(found: Any) -> None:
    assert found["found"] == found["found_async"] == ["Someone has a meal."]


def test_documents_are_bulk_work_and_queries_are_not(found: Any) -> None:
    assert found["priorities"] == [["bulk"], ["interactive"]]
