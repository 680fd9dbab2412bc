"""For LangChain: embeddings that a harken server computes (the extra `langchain`)."""

import asyncio
from contextlib import aclosing

import grpc
from langchain_core.embeddings import Embeddings

from harken_client.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, AsyncClient
from harken_client.sync import Client


class HarkenEmbeddings(Embeddings):  # type: ignore[misc]  # Any where the extra is not installed
    """Embeddings from one harken server, for vector stores and retrievers.

        store = InMemoryVectorStore(HarkenEmbeddings("localhost:8001"))

    target            host:port
    model, version    "" is the server's only model, 0 its default version
    dimensions        the first so many of the model's, normalised again; None: all
    timeout_s         the longest that a query may take, and the longest silence while documents are encoded
    credentials       TLS and call credentials; None is plain text

    Documents are bulk work, which rides behind queries; any number goes in bounded memory. A text over
    the model's maximum length loses its end, an empty one is an error. May be shared by threads and by
    event loops. Every method raises HarkenError.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        version: int = 0,
        dimensions: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._target = target
        self._model = model
        self._version = version
        self._dimensions = dimensions
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._client = Client(target, model=model, version=version, timeout_s=timeout_s, credentials=credentials)
        self._async_clients: dict[asyncio.AbstractEventLoop, AsyncClient] = {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text, in their order."""
        results = self._client.encode_stream(texts, truncate=True, priority="bulk", dimensions=self._dimensions)
        return [result.vector.tolist() for result in results]

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text."""
        (vector,) = self._client.encode([text], truncate=True, priority="interactive", dimensions=self._dimensions)
        return list(vector.tolist())

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As embed_documents."""
        results = self._async_client().encode_stream(texts, truncate=True, priority="bulk", dimensions=self._dimensions)
        async with aclosing(results):
            return [result.vector.tolist() async for result in results]

    async def aembed_query(self, text: str) -> list[float]:
        """As embed_query."""
        (vector,) = await self._async_client().encode(
            [text], truncate=True, priority="interactive", dimensions=self._dimensions
        )
        return list(vector.tolist())

    def _async_client(self) -> AsyncClient:
        # An AsyncClient belongs to one event loop, and a script may call asyncio.run many times.
        running = asyncio.get_running_loop()
        for loop in [loop for loop in self._async_clients if loop.is_closed()]:
            del self._async_clients[loop]
        if running not in self._async_clients:
            self._async_clients[running] = AsyncClient(
                self._target,
                model=self._model,
                version=self._version,
                timeout_s=self._timeout_s,
                credentials=self._credentials,
            )
        return self._async_clients[running]
