"""Unloads and loads a model, with tritonclient's clients as they come; prints whether it was ready in between."""

import json
import sys
from typing import Any

import tritonclient.grpc as triton_grpc  # type: ignore[import-not-found]  # of another environment
import tritonclient.http as triton_http  # type: ignore[import-not-found]  # as above

MODEL = "tiny"


def exchange(client: Any) -> list[bool]:
    ready = [client.is_model_ready(MODEL)]
    client.unload_model(MODEL)
    ready.append(client.is_model_ready(MODEL))
    client.load_model(MODEL)
    ready.append(client.is_model_ready(MODEL))
    client.unload_model(MODEL, unload_dependents=True)
    client.load_model(MODEL)
    return [*ready, client.is_model_ready(MODEL)]


def main() -> None:
    grpc_target, http_target = sys.argv[1:3]
    json.dump(
        {
            "grpc": exchange(triton_grpc.InferenceServerClient(grpc_target)),
            "http": exchange(triton_http.InferenceServerClient(http_target)),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
