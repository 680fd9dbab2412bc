"""What users of the openai package do, unmodified: `python openai_http.py URL < WHAT` prints what came."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai  # type: ignore[import-not-found]  # is in its own environment only

MODEL = "all-MiniLM-L6-v2"


def vectors(response: Any) -> list[Any]:
    return [entry.embedding for entry in response.data]


def error(ask: Callable[..., Any], **request: Any) -> dict[str, Any]:
    try:
        ask(**request)
    except openai.APIStatusError as raised:
        return {
            "kind": type(raised).__name__, "status": raised.status_code, "message": raised.message,
            "code": raised.code, "param": raised.param, "type": raised.type, "request_id": raised.request_id,
        }  # fmt: skip
    return {}


async def found_async(url: str, rows: list[list[int]]) -> list[Any]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answers = await asyncio.gather(*(client.embeddings.create(model=MODEL, input=row) for row in rows))
        return [vectors(answer)[0] for answer in answers]


def main() -> None:
    url, asked = sys.argv[1], json.load(sys.stdin)
    rows, texts = asked["rows"], asked["texts"]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    several = client.embeddings.create(model=MODEL, input=texts)
    found = {
        "texts": vectors(several),
        "usage": several.usage.prompt_tokens,
        "alone": [vectors(client.embeddings.create(model=MODEL, input=row))[0] for row in rows],
        "float": vectors(client.embeddings.create(model=MODEL, input=texts, encoding_format="float")),
        "rows": vectors(client.embeddings.create(model=MODEL, input=rows)),
        "short": vectors(client.embeddings.create(model=MODEL, input=texts, dimensions=64)),
        "models": [model.id for model in client.models.list()],
        "model": client.models.retrieve(MODEL).id,
        "other_model": error(client.models.retrieve, model="some/other"),
        "async": asyncio.run(found_async(url, rows)),
        "no_model": error(client.embeddings.create, model="none", input="a"),
        "empty": error(client.embeddings.create, model=MODEL, input=["a", ""]),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
