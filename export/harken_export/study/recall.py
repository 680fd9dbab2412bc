"""Accuracy by distance of each architecture on each task, and the gradients of what was trained."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from statistics import mean
from typing import Any

import torch

from .claims import Claim
from .gradients import gradient_by_distance, path_lengths
from .tasks import TASKS, Copy
from .training import ARCHITECTURES, LEARNING_RATES, NAMES, Architecture, Course, make_network, parameters, train

# What counts as answering, of every network; and what as having lost it.
LEARNED, LOST = 0.95, 0.5

# (task, how it is taught). Directly: at one distance alone from the first step on, a network for each of DIRECT.
TEACHINGS = ("gradually", "directly")
TAUGHT = tuple(product(TASKS, TEACHINGS))
DIRECT_EVERY = 3
"""Every third distance: the nearest, one between, the farthest."""
DIRECT_SHARE = 0.375
"""Of the steps: the one distance is all that they are spent on."""


def courses(course: Course, taught: str) -> list[Course]:
    """What the networks of one kind go through."""
    if taught == "gradually":
        return [course]
    steps = round(DIRECT_SHARE * course.steps)
    alone = course.distances[::DIRECT_EVERY]
    return [replace(course, distances=(distance,), steps=steps, gradually=False) for distance in alone]


def one_run(architecture: Architecture, task_name: str, taught: str, seed: int, course: Course) -> dict[str, Any]:
    """Train and examine one network; on the copy task, gradually, also its gradients, before and after."""
    torch.set_num_threads(1)
    task = TASKS[task_name]
    trained = train(architecture, task, seed, course)
    run = {
        "architecture": architecture,
        "task": task_name,
        "taught": taught,
        "seed": seed,
        "steps": course.steps,
        "weights": parameters(trained.network),
        "accuracy": keyed(trained.accuracy),
        "loss": trained.loss,
        "cpu_s": trained.cpu_s,
    }
    if (task_name, taught) == (Copy.name, "gradually"):
        untrained = make_network(architecture, course.config(task), seed)
        run["gradients"] = {
            "untrained": keyed(gradient_by_distance(untrained, task, course, seed)),
            "trained": keyed(gradient_by_distance(trained.network, task, course, seed)),
        }
    return run


def keyed(found: dict[int, Any]) -> dict[str, Any]:
    """As JSON has it."""
    return {str(distance): value for distance, value in found.items()}


def measure(course: Course, seeds: tuple[int, ...], processes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both results: of recall and of gradients. One thread for each network, `processes` networks at a time."""
    runs, wanted = [], jobs(course, seeds)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        # What takes longest comes first, so that no process waits long for the last one.
        begun = {job: pool.submit(one_run, *job) for job in sorted(wanted, key=effort, reverse=True)}
        for job in wanted:
            run = begun[job].result()
            told = ", ".join(f"{share:.0%} at {distance}" for distance, share in run["accuracy"].items())
            who = f"{run['task']} {run['taught']} {NAMES[run['architecture']]} seed {run['seed']}"
            print(f"{who}: {told} ({run['cpu_s']:.0f} CPU s)", flush=True)
            runs.append(run)
    return results(runs, course, seeds)


Job = tuple[Architecture, str, str, int, Course]
"""The arguments of `one_run`."""


def effort(job: Job) -> tuple[int, int]:
    """By which the jobs are sorted: the steps, and how long their sequences are."""
    course = job[-1]
    return course.steps, max(course.distances)


def jobs(course: Course, seeds: tuple[int, ...]) -> list[Job]:
    """The arguments of every `one_run`."""
    return [
        (architecture, task, taught, seed, one)
        for task, taught in TAUGHT
        for architecture, seed in product(ARCHITECTURES, seeds)
        for one in courses(course, taught)
    ]


def results(
    runs: list[dict[str, Any]], course: Course, seeds: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both results from all runs."""
    gradients = [
        {"architecture": run["architecture"], "seed": run["seed"], "state": state, "norms": norms}
        for run in runs
        for state, norms in run.pop("gradients", {}).items()
    ]
    common = {"distances": list(course.distances), "seeds": list(seeds)}
    recall = {
        **common,
        "course": asdict(course),
        "learning_rates": LEARNING_RATES,
        "chance": {name: task.chance for name, task in TASKS.items()},
        "runs": runs,
    }
    config = course.config(TASKS[Copy.name])
    paths = {name: keyed(path_lengths(name, config, course.distances)) for name in ARCHITECTURES}
    return recall, {**common, "layers": course.layers, "paths": paths, "runs": gradients}


def accuracies(result: dict[str, Any], task: str, taught: str, architecture: str) -> dict[int, list[float]]:
    """Of each seed, by distance."""
    found: dict[int, list[float]] = {}
    for run in result["runs"]:
        if (run["task"], run["taught"], run["architecture"]) == (task, taught, architecture):
            for distance, share in run["accuracy"].items():
                found.setdefault(int(distance), []).append(share)
    # The keys of JSON are in the order of their letters.
    return dict(sorted(found.items()))


def claims(result: dict[str, Any], task: str, taught: str) -> list[Claim]:
    """What the figures say of long-range dependency, means over the seeds."""
    found = []
    for architecture in ARCHITECTURES:
        means = {distance: mean(shares) for distance, shares in accuracies(result, task, taught, architecture).items()}
        nearest, farthest = min(means), max(means)
        told = f"{means[nearest]:.0%} at {nearest}, {means[farthest]:.0%} at {farthest}"
        who = f"{task}, taught {taught}:"
        if architecture == "attention":
            missed = [str(distance) for distance, share in means.items() if share < LEARNED]
            at = f"; below {LEARNED:.0%} at {', '.join(missed)}" if missed else ""
            found.append(Claim(f"{who} attention answers at every distance ({LEARNED:.0%})", not missed, told + at))
        else:
            near, lost = means[nearest] >= LEARNED, means[farthest] < LOST
            kept = "; it answers when far, too" if means[farthest] >= LEARNED else "; far it answers less often"
            why = "; not even that near was learned" if not near else "" if lost else kept
            text = f"{who} the {NAMES[architecture]} answers when near ({LEARNED:.0%}), and not when far"
            found.append(Claim(f"{text} (below {LOST:.0%})", near and lost, told + why))
    return found


def all_claims(result: dict[str, Any]) -> list[Claim]:
    return [claim for task, taught in TAUGHT for claim in claims(result, task, taught)]
