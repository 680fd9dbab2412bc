"""docs/attention.md, from the measured figures."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from . import cost, gradients, heads, masking, parallelism, recall
from .claims import Claim
from .training import ARCHITECTURES, NAMES

Result = dict[str, Any]


def page(results: Mapping[str, Result], made_on: Mapping[str, Mapping[str, str]], minutes: str) -> str:
    """The whole page. `results`, and the `machine` and the `versions` that they were made on, by the name of the part;
    `minutes`: how long it took."""
    sections = [section(number, name, results[name]) for number, name in enumerate(SECTIONS, 1)]
    return HEAD.format(minutes=minutes, made_on=told(made_on)) + "\n".join(sections)


def told(made_on: Mapping[str, Mapping[str, str]]) -> str:
    """Where the figures come from, once if all come from there."""
    parts: dict[str, list[str]] = {}
    for part in SECTIONS:
        one = made_on.get(part, {"machine": "not recorded", "versions": "not recorded"})
        parts.setdefault(f"Machine: {one['machine']}. Versions: {one['versions']}.", []).append(part)
    if len(parts) == 1:
        return next(iter(parts))
    return "\n\n".join(f"Of {', '.join(names)}: {where}" for where, names in parts.items())


def section(number: int, name: str, result: Result) -> str:
    title, text, figures, claims = SECTIONS[name]
    return "\n".join(
        [
            f"## {number}. {title}",
            "",
            text.strip().format(**figures(result)),
            "",
            f"![{title}](attention/{name}.svg)",
            "",
            table(["claim", "", "found"], [[one.text, verdict(one), one.found] for one in claims(result)]),
            *more(name, result),
            "",
        ]
    )


def verdict(claim: Claim) -> str:
    return "holds" if claim.holds else "**does not hold**"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def more(name: str, result: Result) -> list[str]:
    """Further tables of a part."""
    if name == "recall":
        return ["", costs_of_training(result)]
    if name == "parallelism":
        lengths = result["sizes"]["lengths"]
        rows = [
            [
                NAMES[one],
                f"{result['weights'][one]:,}",
                *(f"{point['compute_ms']:.3g}" for point in result["points"][one]),
            ]
            for one in ARCHITECTURES
        ]
        return ["", table(["ms of the engine at", "weights", *map(str, lengths)], rows)]
    if name == "heads":
        number = heads.counts(result)
        return [
            "",
            table(
                ["kind", "heads", "what that means"], [[kind, str(number[kind]), heads.HEADS[kind]] for kind in number]
            ),
        ]
    return []


def costs_of_training(result: Result) -> str:
    """Weights, steps, time and last loss of every kind of network."""
    rows = []
    for task, taught in recall.TAUGHT:
        for one in ARCHITECTURES:
            of = (task, taught, one)
            runs = [run for run in result["runs"] if (run["task"], run["taught"], run["architecture"]) == of]
            losses = ", ".join(f"{run['loss']:.3f}" for run in runs)
            seconds = f"{mean(run['cpu_s'] for run in runs):.0f}"
            rate = f"{result['learning_rates'][one]:g}"
            rows.append([f"{task}, {taught}", NAMES[one], f"{runs[0]['weights']:,}", rate, f"{runs[0]['steps']}"])
            rows[-1] += [seconds, losses]
    head = ["task", "network", "weights", "learning rate", "steps", "CPU seconds, mean", "last loss of each, nats"]
    return table(head, rows)


def of_recall(result: Result) -> Result:
    direct = [run for run in result["runs"] if run["taught"] == "directly"]
    return {
        **result["course"],
        "seeds": ", ".join(map(str, result["seeds"])),
        "farthest": result["distances"][-1],
        "direct_steps": direct[0]["steps"],
        "direct": ", ".join(sorted({distance for run in direct for distance in run["accuracy"]}, key=int)),
    }


HEAD = """# What self-attention buys, measured

What textbooks say of self-attention (Vaswani et al. 2017, section 4, "Why Self-Attention", and table 1), each claim
as a measurement on small models and one machine. Whether a claim holds is computed from the figures by a rule, here
and below each plot; where it does not hold at some size, it says so. `make study` writes this page, the plots and
their figures (`docs/attention/*.json`) anew from `export/harken_export/study/`; here it took {minutes}.

{made_on}

"""

SECTIONS: dict[str, tuple[str, str, Callable[[Result], Result], Callable[[Result], list[Claim]]]] = {
    "recall": (
        "Long-range dependency",
        """
*Attention reaches every token in one step, however far; a recurrent network has to carry what it may need later
through each step in between.* Two tasks, whose answers lie a known number of tokens back. **Associative recall**
(Graves et al. 2014): four tokens, each of which joins a key with a value; so many random other tokens; then the
keys, in another order, at each of which its value is asked for. Chance is 1/4: one of the values that were seen.
**Copy** (Hochreiter and Schmidhuber 1997; Arjovsky et al. 2016): eight symbols, blanks, then eight marks, at each of
which the symbol exactly so many tokens before is asked for.

The attention side is this project's encoder (`model.py`): {layers} layers, {heads} heads, hidden {hidden_size}. The
others are the same encoder with its layers replaced by one layer of LSTM or GRU, wide enough for as many weights
(within 2 %, the layer that answers counted; an LSTM's forget gates start open). Each learns one task in as many
steps (Adam, rate up in the first twentieth, then down to zero; gradients clipped at 1), all from the same batches in
the same order, about {batch_tokens} tokens each, at most {batch_sequences} sequences. The peak rates, one for each
kind of network, are of a handful that were tried on a seed that no figure here uses. Equal steps are not equal time:
the table has both.

**Gradually**: {steps} steps, of which the first third has the shortest distance of the task alone (0 and 8), in the
second third the others up to {farthest} are let in one after the other, in the last all are in, and each step draws
one. **Directly**: a network for each of the distances {direct}, which sees no other, {direct_steps} steps. Examined on
{examined_sequences} new sequences for each distance. Seeds {seeds}; the line is their mean, the band goes from the
worst to the best.
""",
        of_recall,
        recall.all_claims,
    ),
    "gradients": (
        "Path length and gradient",
        """
*The longest path between two positions is constant in attention and grows with the distance in a recurrent network
(table 1), and along a long path gradients vanish (Bengio et al. 1994).* Path: the fewest arithmetic operations
between an input and an output so many tokens later, counted in the graph that autograd recorded ({layers} layers of
attention; one cell of LSTM or GRU, step by step). Gradient: the norm of d(u . y) / dx from the token vector y at a
mark of the copy task back to the embedding x of the symbol that it asks for, u a random direction of length 1,
divided by the same for the mark's own embedding; in float64, since an untrained LSTM's is below the least float32.
Trained means after the course above.
""",
        lambda result: result,
        gradients.claims,
    ),
    "parallelism": (
        "Parallelism",
        """
*Attention computes all tokens at once, in a constant number of steps in sequence; a recurrent network needs one
step after the other (table 1).* Encoders of {sizes[layers]} layers, hidden {sizes[hidden_size]} (MiniLM's layers),
against an LSTM and a GRU of as many layers and weights, all random, each exported by this project to a bundle,
proved equal to PyTorch over ragged batches, and served by one `harken-server` with its defaults. One sequence at a
time, batch of one, in turns; the fastest of {sizes[repeats]}, which whatever else the machine does disturbs least.
The server gives a lone sequence all cores where it measured at its start that this is faster.
""",
        lambda result: result,
        parallelism.claims,
    ),
    "cost": (
        "Quadratic cost",
        """
*Attention costs O(L² H), a layer's linear maps O(L H²) (table 1; Kaplan et al. 2020, table 1, count the latter
alike).* By operations a layer has 24 H² L in its six matrices and 4 H L² in QKᵀ and the weighted sum, which are
equal at L = 6 H. One encoder layer, H = {hidden_size}, {heads} heads, random weights, positions up to the longest,
batch of one, in ONNX Runtime on one thread; the fastest of 7 runs. Memory is the process's peak above the loaded model,
without an arena. Each law c + a L + b L² has the least relative squared error; its terms cross at a / b. Exponents
are slopes of the logarithms.
""",
        lambda result: result,
        cost.claims,
    ),
    "masking": (
        "Masking",
        """
*Padding must not change a result; the mask takes it out of the softmax, and out of the mean.* {sentences} English
sentences (median {median_tokens} tokens) through all-MiniLM-L6-v2, with [PAD] behind them: with the mask in both
places, in one of them, in none.
""",
        lambda result: result,
        masking.claims,
    ),
    "heads": (
        "What heads look at",
        """
*Heads specialise: some look at a position, some at delimiters, some at content (Clark et al. 2019, "What Does BERT
Look At?").* The real model's heads over {sentences} English sentences, {words} tokens: the share of a token's
attention that goes to the one before, the one behind, itself, [CLS] and [SEP], the same word elsewhere, and other
words. *Moves with the words*: the words of each sentence are shuffled; how much of the attention among them follows
the words, less how much stays with the places. Rows are layers, columns heads, counted from 0 as in every call: head
3.7 is head 7 of layer 3.
""",
        lambda result: result,
        heads.claims,
    ),
}
