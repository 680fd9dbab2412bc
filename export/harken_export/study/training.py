"""One network learns one task: the same batches in the same order, whatever the network."""

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from harken_export.model import Encoder, EncoderConfig

from .recurrent import RECURRENCES, Recurrence, RecurrentEncoder, equal_hidden_size
from .tasks import Examples, Task

Architecture = Literal["attention"] | Recurrence
ARCHITECTURES: tuple[Architecture, ...] = ("attention", *RECURRENCES)
NAMES: dict[Architecture, str] = {"attention": "attention", "lstm": "LSTM", "gru": "GRU"}


@dataclass(frozen=True)
class Course:
    """How a network is trained and examined.

    distances       in tokens, rising; what is examined
    gradually       a third of the steps has the task's shortest distance alone, in the next the others are let in one
                    after the other, in the last all are in; a step draws one of them. Else all are in from the start
    batch_tokens    about so many tokens make a batch, in at most batch_sequences sequences
    """

    distances: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    gradually: bool = True
    steps: int = 1600
    batch_tokens: int = 2048
    batch_sequences: int = 128
    examined_sequences: int = 256
    layers: int = 2
    heads: int = 4
    hidden_size: int = 64
    max_distance: int = 512

    def config(self, task: Task) -> EncoderConfig:
        return EncoderConfig(
            layers=self.layers,
            heads=self.heads,
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            vocab_size=task.vocab_size,
            max_length=task.length(self.max_distance),
        )


# Of a handful that were tried on a seed that no figure uses; not searched for.
LEARNING_RATES: dict[Architecture, float] = {"attention": 1e-3, "lstm": 3e-3, "gru": 3e-3}
WARM_UP = 0.05
CLIP = 1.0


class Answering(nn.Module):
    """An encoder and a linear layer upon its token vectors. ids int64 [B, L] -> scores of ids [B, A, V]."""

    def __init__(self, encoder: Encoder, width: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.answer = nn.Linear(width, vocab_size)

    def forward(self, ids: Tensor, answers: int) -> Tensor:
        _, tokens = self.encoder(ids, torch.ones_like(ids))
        scores: Tensor = self.answer(tokens[:, -answers:])
        return scores


@dataclass(frozen=True)
class Trained:
    """A network after its course. accuracy: share of right answers, 0 to 1, by distance."""

    network: Answering
    accuracy: dict[int, float]
    loss: float
    """Of the last twentieth of the steps, mean, in nats."""
    cpu_s: float


def make_network(architecture: Architecture, config: EncoderConfig, seed: int, depth: int = 1) -> Answering:
    """An untrained network. Recurrent ones have `depth` layers, and as many weights as the encoder."""
    torch.manual_seed(seed)
    if architecture == "attention":
        encoder, width = Encoder(config), config.hidden_size
    else:
        width = equal_hidden_size(architecture, config, depth, answers=config.vocab_size)
        encoder = RecurrentEncoder(architecture, config, width, depth)
    nn.init.zeros_(encoder.embeddings.token_type)
    return Answering(encoder, width, config.vocab_size)


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def train(architecture: Architecture, task: Task, seed: int, course: Course, rate: float | None = None) -> Trained:
    """Train a new network. The seed fixes the weights at the start and every example."""
    network = make_network(architecture, course.config(task), seed)
    began_s = time.process_time()
    peak = LEARNING_RATES[architecture] if rate is None else rate
    optimizer = torch.optim.Adam(network.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step / course.steps))
    generator = Generator().manual_seed(seed)
    losses = []
    for step in range(course.steps):
        examples = lesson(task, course, step, generator)
        loss = loss_of(network, examples)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    last = losses[-max(1, course.steps // 20) :]
    cpu_s = time.process_time() - began_s
    network.requires_grad_(False).eval()
    return Trained(network, examine(network, task, course), sum(last) / len(last), cpu_s)


def rate_share(progress: float) -> float:
    """What share of the peak learning rate holds: up in the first twentieth, then down to zero, both in a line."""
    return min((progress + 1e-3) / WARM_UP, (1 - progress) / (1 - WARM_UP))


def lesson(task: Task, course: Course, step: int, generator: Generator) -> Examples:
    """The examples of a step."""
    distances = sorted({task.shortest, *course.distances}) if course.gradually else course.distances
    share = min(1.0, max(0.0, 3 * step / course.steps - 1)) if course.gradually else 1.0
    known = 1 + round(share * (len(distances) - 1))
    distance = distances[int(torch.randint(known, (), generator=generator))]
    sequences = max(1, min(course.batch_sequences, course.batch_tokens // task.length(distance)))
    return task.draw(sequences, distance, generator)


def loss_of(network: Answering, examples: Examples) -> Tensor:
    scores = network(examples.ids, examples.answers.shape[1])
    return nn.functional.cross_entropy(scores.flatten(0, 1), examples.answers.flatten())


def examine(network: Answering, task: Task, course: Course) -> dict[int, float]:
    """Accuracy by distance, on the same new examples for every network."""
    generator = Generator().manual_seed(2**31)
    found = {}
    with torch.inference_mode():
        for distance in course.distances:
            right = []
            for _ in range(max(1, course.examined_sequences // 32)):
                examples = task.draw(32, distance, generator)
                chosen = network(examples.ids, examples.answers.shape[1]).argmax(-1)
                right.append((chosen == examples.answers).float().mean())
            found[distance] = float(torch.stack(right).mean())
    return found
