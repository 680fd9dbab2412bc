"""A request and an answer of the Open Inference Protocol, whatever form they travel in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A tensor as it was sent; nothing of it is checked yet."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes | Sequence[object]
    """Raw (little-endian, row-major; of BYTES each element after its length as a uint32), or the elements in a row."""
    parameters: Mapping[str, Parameter]
    field: str
    """How an error calls the tensor, for instance `inputs[0]`."""
    content_field: str
    """How an error calls its content, for instance `raw_input_contents[0]`."""


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that the answer shall have."""

    name: str
    parameters: Mapping[str, Parameter]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. `outputs`: empty means all."""

    id: str
    parameters: Mapping[str, Parameter]
    inputs: Sequence[InputTensor]
    outputs: Sequence[WantedOutput]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of the answer."""

    name: str
    datatype: str
    content: npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Response:
    """The answer."""

    model: str
    version: int
    id: str
    parameters: Mapping[str, Parameter]
    outputs: Sequence[OutputTensor]
