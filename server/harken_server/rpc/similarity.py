"""Similarity: one query against many candidates."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from harken.v1 import encoder_pb2

from harken_server.errors import BadValue, InvalidRequest, Missing, NoContent, Problem, Refusal
from harken_server.execution.engine import SENTENCE
from harken_server.models.repository import Model
from harken_server.rpc.convert import check_options
from harken_server.values import Answers, Options

_FLOATS: Final = (encoder_pb2.DATA_TYPE_UNSPECIFIED, encoder_pb2.DATA_TYPE_FLOAT32)
_LEAST_NORM: Final = 1e-12


def check_similarity(request: encoder_pb2.SimilarityRequest, options: Options, model: Model) -> None:
    """Raises InvalidRequest if there is nothing to compare, or no sentence vectors to compare it by."""
    problems: list[Problem] = []
    if not request.HasField("query"):
        problems.append(NoContent("query"))
    if not request.candidates:
        problems.append(Missing("candidates"))
    if options.outputs != (SENTENCE,):
        problems.append(BadValue("options.output", "OUTPUT_TOKENS", "OUTPUT_SENTENCE: sentences are compared"))
    if request.options.data_type not in _FLOATS:
        name = encoder_pb2.DataType.Name(request.options.data_type)
        problems.append(BadValue("options.data_type", name, "DATA_TYPE_FLOAT32: vectors do not travel"))
    if options.chunks == "all":
        problems.append(
            BadValue("options.chunking.vectors", "CHUNK_VECTORS_ALL", "CHUNK_VECTORS_MEAN: texts are compared")
        )
    if options.places:
        problems.append(BadValue("options.token_offsets", "true", "false: nothing but matches is answered"))
    if problems:
        raise InvalidRequest(tuple(problems))
    check_options(options, request.options.data_type, model)


def best_matches(answers: Answers, top_k: int) -> Iterator[tuple[int, float]]:
    """Index and cosine of the candidates, the best first. Raises the Refusal of whoever failed."""
    vectors = []
    for answer in answers.answers:
        if isinstance(answer.outcome, Refusal):
            raise answer.outcome
        vectors.append(answer.outcome[SENTENCE])
    stacked = np.stack(vectors)
    stacked = stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), _LEAST_NORM)
    # Row by row: a product of matrices rounds equal rows as their places are.
    scores = np.clip((stacked[1:] * stacked[0]).sum(axis=1, dtype=np.float64), -1.0, 1.0)
    # Stable: of equals the earlier candidate is the better one.
    order = np.argsort(-scores, kind="stable")[: top_k or len(scores)]
    return ((int(index), float(scores[index])) for index in order)
