"""For code that was written for sentence-transformers: the same `encode`, computed by a harken server."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harken_client.sync import Client
from harken_client.values import Vector, VectorOptions

# What encode takes there and has no place here, and why.
_ELSEWHERE = {
    "device": "the server chose it at its start",
    "pool": "the server computes side by side by itself",
    "chunk_size": "inputs are sent as the server takes them",
}


class SentenceEncoder:
    """What users of a SentenceTransformer call, over a harken client.

        with Client("localhost:8001") as client:
            model = SentenceEncoder(client)
            vectors = model.encode(["first text", "second text"])  # float32 [2, hidden]

    prompts               texts by name, put before a sentence where `prompt_name` says so
    default_prompt_name   of the prompt where a call names none

    Results are as there, but for these: arrays are numpy's, no sentences give [0, hidden], and an
    empty sentence is an error. Whatever cannot be as there is refused by its name.
    """

    def __init__(
        self,
        client: Client,
        *,
        prompts: Mapping[str, str] = MappingProxyType({}),
        default_prompt_name: str | None = None,
    ) -> None:
        self._client = client
        self._prompts = dict(prompts)
        self._default_prompt = "" if default_prompt_name is None else self._named(default_prompt_name)

    @property
    def max_seq_length(self) -> int:
        """In tokens; a sentence that is longer loses its end. The server's, so it cannot be set."""
        return self._client.model().max_length

    def get_embedding_dimension(self) -> int:
        """Elements of a vector where `truncate_dim` does not say less."""
        return self._client.model().hidden_size

    get_sentence_embedding_dimension = get_embedding_dimension

    def encode(
        self,
        sentences: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **others: Any,
    ) -> Any:
        """Encode one sentence, or any number of them.

        Returns float32 [sentences, dimensions], of a single str [dimensions]. precision "binary" and
        "ubinary": a bit a dimension, packed into int8 or uint8 [sentences, dimensions / 8].
        output_value "token_embeddings": a list with one float32 [tokens, hidden] for each sentence.
        `batch_size` and `show_progress_bar` change nothing: the server batches, and nothing is shown.

        Raises TypeError and ValueError for what cannot be as in sentence-transformers, else HarkenError.
        """
        for name in others:
            raise TypeError(f"encode takes no {name}: {_ELSEWHERE.get(name, 'the model takes nothing of that name')}")
        if convert_to_tensor or not convert_to_numpy:
            raise ValueError("encode gives numpy arrays and no tensors: take torch.from_numpy of its result")
        before = self._prompt(prompt, prompt_name)
        alone = isinstance(sentences, str)
        texts = [_prefixed(before, text, index) for index, text in enumerate([sentences] if alone else sentences)]
        if output_value == "token_embeddings":
            if normalize_embeddings or truncate_dim is not None or precision != "float32":
                raise ValueError(
                    "token_embeddings are as the model gives them: no normalize_embeddings, truncate_dim or precision"
                )
            tokens = [r.vector.copy() for r in self._client.encode_stream(texts, output="tokens", truncate=True)]
            return tokens[0] if alone else tokens
        if output_value != "sentence_embedding":
            raise ValueError(f"output_value is 'sentence_embedding' or 'token_embeddings', not {output_value!r}")
        vectors = self._vectors(texts, precision, truncate_dim, normalize=normalize_embeddings)
        return vectors[0] if alone else vectors

    def encode_query(self, sentences: str | Iterable[str], **options: Any) -> Any:
        """As `encode`, with the prompt "query" where the call names none and there is one."""
        return self._encode_for(("query",), sentences, options)

    def encode_document(self, sentences: str | Iterable[str], **options: Any) -> Any:
        """As `encode`, with the prompt "document", "passage" or "corpus" where the call names none and there is one."""
        return self._encode_for(("document", "passage", "corpus"), sentences, options)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[np.float32]:
        """Cosines between all of `embeddings1` [n, dimensions] and `embeddings2` [m, dimensions]: float32 [n, m]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def _vectors(self, texts: list[str], precision: str, truncate_dim: int | None, *, normalize: bool) -> Vector:
        if precision not in ("float32", "binary", "ubinary"):
            raise ValueError(
                f"precision is 'float32', 'binary' or 'ubinary', not {precision!r}: there, int8 and uint8 depend on "
                "the other sentences of the call; int8 that does not is Client.encode(element_type='int8')"
            )
        if truncate_dim is not None:
            hidden = self.get_embedding_dimension()
            if not 1 <= truncate_dim <= hidden:
                raise ValueError(f"truncate_dim is from 1 to the model's {hidden}, not {truncate_dim}")
        options: VectorOptions = {"dimensions": truncate_dim}
        cut = None
        if precision != "float32":
            options["element_type"] = "binary"
        elif normalize:
            options["normalize"] = True
        else:
            # The server would make what is left of a vector of length 1 as long again; there it is cut as it is.
            options, cut = {}, truncate_dim
        if texts:
            vectors = np.stack([r.vector[:cut] for r in self._client.encode_stream(texts, truncate=True, **options)])
        else:
            vectors = self._client.encode([], **options)[:, :cut]
        # There, the bytes of "binary" are those of "ubinary" less 128.
        return (vectors ^ 0x80).view(np.int8) if precision == "binary" else vectors

    def _encode_for(self, names: tuple[str, ...], sentences: str | Iterable[str], options: dict[str, Any]) -> Any:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            options["prompt"] = next((self._prompts[name] for name in names if name in self._prompts), "")
        return self.encode(sentences, **options)

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None and name is not None:
            raise ValueError("prompt and prompt_name exclude one another")
        if name is not None:
            return self._named(name)
        return self._default_prompt if prompt is None else prompt

    def _named(self, name: str) -> str:
        if name not in self._prompts:
            raise ValueError(f"prompt_name {name!r} is none of {', '.join(map(repr, self._prompts)) or 'no prompts'}")
        return self._prompts[name]


def _prefixed(before: str, text: object, index: int) -> str:
    if not isinstance(text, str):
        raise TypeError(f"sentences[{index}] is a str, not {text!r:.60}")
    return before + text


def _unit(vectors: ArrayLike) -> NDArray[np.float32]:
    """float32 [n, dimensions] of length 1 each; a single vector becomes [1, dimensions]."""
    rows = np.atleast_2d(np.asarray(vectors, np.float32))
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return unit
