"""How far a signal has to go, and what is left of it: path length and gradient by distance."""

import math
import sys
from collections import deque
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.autograd.graph import Node

from harken_export.model import EncoderConfig, padding_bias

from .claims import Claim
from .recurrent import Recurrence
from .tasks import Task
from .training import ARCHITECTURES, NAMES, Answering, Architecture, Course, make_network

# They only move numbers.
MOVES = (
    "View", "Transpose", "Expand", "Permute", "Reshape", "Select", "Slice", "Unbind", "Stack", "Cat", "Clone",
    "TBackward", "Squeeze", "Unsqueeze", "Split", "Chunk", "AsStrided", "ToCopy", "Accumulate",
)  # fmt: skip
SEQUENCES, PROBES = 8, 4


def gradient_by_distance(network: Answering, task: Task, course: Course, seed: int) -> dict[int, list[float]]:
    """How much an output depends on an input, by distance d: [far, own].

    far is the norm of d(u . y_t) / d(x_t-d), own that of d(u . y_t) / d(x_t): x the embeddings after their norm, y the
    token vector at a mark of the copy task, u a random direction of length 1; the root of the mean square over
    sequences, marks and directions. In float64: an untrained LSTM's is below the least float32.
    """
    generator = Generator().manual_seed(seed)
    found = {}
    exact = network.double()
    for distance in course.distances:
        examples = task.draw(SEQUENCES, distance, generator)
        rows = torch.arange(SEQUENCES)
        squares = torch.zeros(2, dtype=torch.float64)
        for _ in range(PROBES):
            asked = torch.randint(examples.answers.shape[1], (SEQUENCES,), generator=generator)
            at = task.length(distance) - examples.answers.shape[1] + asked
            gradient = input_gradient(exact, examples.ids, at, generator)
            for place, index in enumerate((at - distance, at)):
                squares[place] += gradient[rows, index].square().sum() / (SEQUENCES * PROBES)
        found[distance] = squares.sqrt().tolist()
    network.float()
    return found


def input_gradient(network: Answering, ids: Tensor, at: Tensor, generator: Generator) -> Tensor:
    """The gradient of u . y[at] of each row with respect to its embeddings. float64 [B, L, H]."""
    seen: list[Tensor] = []

    def watch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    handle = network.encoder.embeddings.register_forward_hook(watch)
    try:
        _, tokens = network.encoder(ids, torch.ones_like(ids))
    finally:
        handle.remove()
    # The encoder gives float32; what matters is that nothing before that last step was rounded.
    outputs = tokens[torch.arange(len(ids)), at].double()  # [B, H]
    direction = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad((outputs * direction).sum(), seen)
    return gradient


def path_lengths(architecture: Architecture, config: EncoderConfig, distances: tuple[int, ...]) -> dict[int, int]:
    """Operations on the shortest way from an input to the output `distance` tokens later, as autograd recorded them."""
    longest = max(distances)
    inputs = [torch.zeros(1, config.hidden_size, requires_grad=True) for _ in range(longest + 1)]
    if architecture == "attention":
        output = attention_output(config, inputs)
    else:
        output = recurrent_output(architecture, config.hidden_size, inputs)
    assert output.grad_fn is not None
    steps = steps_to_leaves(output.grad_fn)
    return {distance: steps[id(inputs[longest - distance])] for distance in distances}


def attention_output(config: EncoderConfig, inputs: list[Tensor]) -> Tensor:
    """The last token's vector after the encoder's layers."""
    encoder = make_network("attention", config, seed=0).encoder
    hidden = torch.stack(inputs, dim=1)
    bias = padding_bias(torch.ones(1, len(inputs), dtype=torch.int64), hidden.dtype)
    for layer in encoder.layers:
        hidden = layer(hidden, bias)
    return hidden[:, -1]


def recurrent_output(recurrence: Recurrence, size: int, inputs: list[Tensor]) -> Tensor:
    """The state after the last token, step by step: torch's own loop is one operation to autograd."""
    if recurrence == "lstm":
        lstm, memory = nn.LSTMCell(size, size), (torch.zeros(1, size), torch.zeros(1, size))
        for vector in inputs:
            memory = lstm(vector, memory)
        return memory[0]
    gru, state = nn.GRUCell(size, size), torch.zeros(1, size)
    for vector in inputs:
        state = gru(vector, state)
    return state


def steps_to_leaves(root: Node) -> dict[int, int]:
    """The fewest operations from `root` to each leaf, by the leaf's id."""
    best: dict[Node, int] = {root: weight(root)}
    found: dict[int, int] = {}
    # A move costs nothing, so it goes to the front: the queue stays sorted.
    queue = deque([root])
    while queue:
        node = queue.popleft()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = best[node]
        for following, _ in node.next_functions:
            if following is None:
                continue
            steps = best[node] + weight(following)
            if steps < best.get(following, 1 << 62):
                best[following] = steps
                (queue.append if weight(following) else queue.appendleft)(following)
    return found


def weight(node: Node) -> int:
    return int(not any(move in node.name() for move in MOVES))


def ratios(result: dict[str, Any], architecture: str, state: str) -> dict[int, list[float]]:
    """far / own of each seed, by distance."""
    runs = [run for run in result["runs"] if (run["architecture"], run["state"]) == (architecture, state)]
    return {
        distance: [far / own for far, own in (run["norms"][str(distance)] for run in runs)]
        for distance in result["distances"]
    }


def typical(values: list[float]) -> float:
    """The geometric mean: they span orders of magnitude."""
    return math.exp(sum(math.log(max(value, sys.float_info.min)) for value in values) / len(values))


def claims(result: dict[str, Any]) -> list[Claim]:
    """What the figures say of paths and gradients."""
    nearest, farthest = result["distances"][0], result["distances"][-1]
    times = farthest / nearest
    found = []
    for name in ARCHITECTURES:
        paths = result["paths"][name]
        near, far = paths[str(nearest)], paths[str(farthest)]
        holds = len(set(paths.values())) == 1 if name == "attention" else far > 0.5 * times * near
        shape = "is the same at every distance" if name == "attention" else "grows as the distance does"
        found.append(
            Claim(
                f"the path through {NAMES[name]} {shape}", holds, f"{near} operations at {nearest}, {far} at {farthest}"
            )
        )
    for name in ARCHITECTURES:
        for state in ("untrained", "trained"):
            left = {distance: typical(seeds) for distance, seeds in ratios(result, name, state).items()}
            # What is lost per token: a power of the distance loses less and less, an exponential always the same.
            lost = left[farthest] / left[nearest]
            told = f"at {farthest} tokens it is {lost:.1g} of what it is at {nearest}"
            if name == "attention":
                held = Claim(
                    f"the gradient through {state} attention falls no faster than 1 / length (to {0.5 / times:.1g})",
                    lost >= 0.5 / times,
                    told,
                )
            else:
                held = Claim(f"the gradient through the {state} {NAMES[name]} vanishes (below 1e-6)", lost < 1e-6, told)
            found.append(held)
    return found
