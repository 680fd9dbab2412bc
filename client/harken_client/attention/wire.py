"""Between the caller's values and the messages of Attend."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from harken.v1 import encoder_pb2 as pb
from numpy.typing import NDArray

from harken_client import wire
from harken_client.attention.values import AttendOptions, Attention, Links, Pair
from harken_client.checks import checked_count
from harken_client.errors import InternalError
from harken_client.values import Input


def request(value: Input, other: Input | None, model: str, version: int, options: AttendOptions) -> pb.AttendRequest:
    """Raises TypeError or ValueError for what cannot be sent."""
    message = pb.AttendRequest(
        model=model,
        version=version,
        input=wire.placed_message("text", value),
        truncation=wire.truncation(options.get("truncate", False)),
        top_k=checked_count("top_k", options.get("top_k", 0)),
        layers=_numbers("layers", options.get("layers")),
        heads=_numbers("heads", options.get("heads")),
        maps=options.get("maps", False),
        mean=options.get("mean", False),
        rollout=options.get("rollout", False),
        received=options.get("received", False),
        entropy=options.get("entropy", False),
    )
    if other is not None:
        message.other.CopyFrom(wire.placed_message("other", other))
    return message


def _numbers(name: str, given: Sequence[int] | None) -> list[int]:
    if given is None:
        return []
    if not given:
        raise ValueError(f"{name} is None, for all of them, or not empty")
    return [checked_count(f"{name}[{index}]", number) for index, number in enumerate(given)]


class Assembly:
    """Puts an answer together as its messages come."""

    def __init__(self, value: Input, other: Input | None) -> None:
        self._texts = [given if isinstance(given, str) else None for given in (value, other)]
        self._summary: pb.AttendSummary | None = None
        self._maps: dict[int, NDArray[np.float32]] = {}
        self._links: Links | None = None
        self._left = 0

    def take(self, message: pb.AttendResponse) -> None:
        """The next message. Raises InternalError if it is not what comes next."""
        if self._summary is None:
            if message.WhichOneof("part") != "summary":
                raise InternalError("the server's answer to Attend began without a summary")
            self._summary, self._left = message.summary, message.summary.parts
            return
        self._left -= 1
        try:
            if message.WhichOneof("part") == "links":
                self._put_links(message.links, self._summary)
            else:
                self._put(message.rows, self._summary)
        except (ValueError, IndexError) as error:
            raise InternalError(f"the server's answer to Attend does not fit together: {error}") from None

    def _put(self, part: pb.AttentionRows, summary: pb.AttendSummary) -> None:
        layers, heads = list(summary.layers), list(summary.heads)
        length, others = len(summary.input.ids), len(summary.other.ids)
        shapes = {
            pb.MAP_KIND_HEAD: (len(layers), len(heads), length, length),
            pb.MAP_KIND_MEAN: (len(layers), length, length),
            pb.MAP_KIND_ROLLOUT: (length, length),
            pb.MAP_KIND_SIMILARITY: (length, others),
        }
        if part.kind not in shapes:
            raise ValueError(f"a map of kind {part.kind}, unknown to this client")
        whole = self._maps.get(part.kind)
        if whole is None:
            whole = self._maps[part.kind] = np.empty(shapes[part.kind], np.float32)
        place: tuple[int, ...] = ()
        if part.kind in (pb.MAP_KIND_HEAD, pb.MAP_KIND_MEAN):
            place = (layers.index(part.layer),)
        if part.kind == pb.MAP_KIND_HEAD:
            place += (heads.index(part.head),)
        rows = _array(part.rows, np.float32)
        whole[place][part.first : part.first + len(rows)] = rows

    def _put_links(self, part: pb.AttentionLinks, summary: pb.AttendSummary) -> None:
        weights = _array(part.weights, np.float32)
        if self._links is None:
            shape = (len(summary.layers), len(summary.input.ids), weights.shape[1])
            self._links = Links(np.empty(shape, np.uint32), np.empty(shape, np.float32))
        layer, rows = list(summary.layers).index(part.layer), slice(part.first, part.first + len(weights))
        self._links.tokens[layer][rows] = np.array(part.tokens, np.uint32).reshape(weights.shape)
        self._links.weights[layer][rows] = weights

    def whole(self) -> Attention:
        """What has come, all of it. Raises InternalError if something is missing."""
        summary = self._summary
        if summary is None or self._left:
            raise InternalError("the server's answer to Attend is not whole")
        text, other = self._texts
        maps = self._maps
        timings = summary.timings if summary.HasField("timings") else None
        return Attention(
            text=text,
            **_text(summary.input),
            layers=tuple(summary.layers),
            heads=tuple(summary.heads),
            model=summary.model,
            version=summary.version,
            maps=maps.get(pb.MAP_KIND_HEAD),
            mean=maps.get(pb.MAP_KIND_MEAN),
            rollout=maps.get(pb.MAP_KIND_ROLLOUT),
            received=_array(summary.received, np.float32) if summary.HasField("received") else None,
            entropy=_array(summary.entropy, np.float32) if summary.HasField("entropy") else None,
            links=self._links,
            pair=Pair(
                similarity=summary.similarity,
                contributions=maps[pb.MAP_KIND_SIMILARITY],
                text=other,
                **_text(summary.other),
            )
            if summary.HasField("similarity")
            else None,
            timings=wire.timings(timings) if timings is not None else None,
        )


def _text(message: pb.AttendedText) -> dict[str, Any]:
    return {
        "tokens": tuple(message.tokens),
        "ids": np.array(message.ids, np.int64),
        "offsets": wire.offsets(message.offsets) if message.HasField("offsets") else None,
        "truncated": message.truncated,
    }


def _array(tensor: pb.Tensor, dtype: type[np.float32]) -> NDArray[np.float32]:
    return np.frombuffer(tensor.data, np.dtype(dtype).newbyteorder("<")).reshape(tuple(tensor.shape))
