"""What users of LangChain do with HarkenEmbeddings: `python langchain_embeddings.py TARGET < WHAT` prints what came.

LangChain's own standard tests of an integration are among it.
"""

import asyncio
import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any

import pytest
from harken_client import Client
from harken_client.langchain import HarkenEmbeddings
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import (  # type: ignore[import-not-found]  # is in its own environment only
    EmbeddingsIntegrationTests,
)
from langchain_tests.unit_tests import (  # type: ignore[import-not-found]  # is in its own environment only
    EmbeddingsUnitTests,
)

TARGET = sys.argv[1] if __name__ == "__main__" else os.environ["HARKEN_TARGET"]
MEALS = ["Someone has a meal.", "The market fell.", "Rain is expected in the north."]


class Parameters:
    embeddings_class = HarkenEmbeddings
    embedding_model_params = {"target": TARGET, "model": "all-MiniLM-L6-v2"}  # noqa: RUF012 - as the tests want it


class TestUnit(Parameters, EmbeddingsUnitTests):  # type: ignore[misc]  # Any where its package is missing
    """LangChain's tests without a server."""


class TestIntegration(Parameters, EmbeddingsIntegrationTests):  # type: ignore[misc]  # as above
    """LangChain's tests with one."""


class Outcomes:
    """What came of each test, by its name."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed:
            self.of[report.nodeid.rpartition("::")[2]] = report.outcome


def standard_tests() -> dict[str, str]:
    os.environ["HARKEN_TARGET"] = TARGET
    outcomes = Outcomes()
    alone = ["-c", os.devnull, "--rootdir", os.path.dirname(__file__), "-p", "no:cacheprovider", "--noconftest"]
    with redirect_stdout(sys.stderr):
        pytest.main([*alone, "-o", "asyncio_mode=auto", __file__], plugins=[outcomes])
    return outcomes.of


async def in_a_loop(embeddings: HarkenEmbeddings, texts: list[str]) -> list[Any]:
    # Whoever goes through a thread fails here.
    loop = asyncio.get_running_loop()
    await loop.shutdown_default_executor()
    documents, *queries = await asyncio.gather(
        embeddings.aembed_documents(texts), *(embeddings.aembed_query(text) for text in texts)
    )
    return [documents, queries]


async def found_async(embeddings: HarkenEmbeddings) -> list[str]:
    store = await InMemoryVectorStore.afrom_texts(MEALS, embeddings)
    return [document.page_content for document in await store.asimilarity_search("A man is eating food.", k=1)]


def priorities(embed: Any, value: Any) -> list[str]:
    """Of those that rode in the batch that it made."""
    embed(value)
    with Client(TARGET) as client:
        return [member.priority for member in client.explain_batches(1)[0].members]


def main() -> None:
    texts = json.load(sys.stdin)["texts"]
    embeddings = HarkenEmbeddings(TARGET)
    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(text) for text in MEALS])
    found = {
        "standard": standard_tests(),
        "queries": [embeddings.embed_query(text) for text in texts],
        "documents": embeddings.embed_documents(texts),
        "many": len(embeddings.embed_documents(["a text"] * 3000)),
        "none": embeddings.embed_documents([]),
        "short": HarkenEmbeddings(TARGET, dimensions=64).embed_query(texts[0]),
        "long": [embeddings.embed_query("word " * length) for length in (510, 900)],
        "in_loops": [asyncio.run(in_a_loop(embeddings, texts)) for _ in range(2)],
        "found": [document.page_content for document in store.similarity_search("A man is eating food.", k=1)],
        "found_async": asyncio.run(found_async(embeddings)),
        "priorities": [
            priorities(embeddings.embed_documents, texts[:1]), priorities(embeddings.embed_query, texts[0]),
        ],
    }  # fmt: skip
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
