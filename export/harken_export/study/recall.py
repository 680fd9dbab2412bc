"""Accuracy by distance of each architecture on each task, and the gradients of what was trained."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from statistics import mean
from typing import Any

import torch

from .claims import Claim
from .gradients import gradient_by_distance, path_lengths
from .tasks import TASKS, Copy
from .training import ARCHITECTURES, LEARNING_RATES, Architecture, Course, make_network, parameters, train

LEARNED, LOST = 0.95, 0.9


def one_run(architecture: Architecture, task_name: str, seed: int, course: Course) -> dict[str, Any]:
    """Train and examine one network; on the copy task also its gradients, before and after."""
    torch.set_num_threads(1)
    task = TASKS[task_name]
    trained = train(architecture, task, seed, course)
    run = {
        "architecture": architecture,
        "task": task_name,
        "seed": seed,
        "weights": parameters(trained.network),
        "accuracy": {str(distance): share for distance, share in trained.accuracy.items()},
        "loss": trained.loss,
        "cpu_s": trained.cpu_s,
    }
    if task_name == Copy.name:
        untrained = make_network(architecture, course.config(task), seed)
        run["gradients"] = {
            "untrained": keyed(gradient_by_distance(untrained, task, course, seed)),
            "trained": keyed(gradient_by_distance(trained.network, task, course, seed)),
        }
    return run


def keyed(found: dict[int, list[float]]) -> dict[str, list[float]]:
    """As JSON has it."""
    return {str(distance): norms for distance, norms in found.items()}


def measure(course: Course, seeds: tuple[int, ...], processes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both results: of recall and of gradients. One thread for each network, so many networks at a time."""
    jobs = list(product(ARCHITECTURES, TASKS, seeds))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(one_run, *zip(*jobs, strict=True), [course] * len(jobs)))
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
    paths = {name: keyed_path(path_lengths(name, config, course.distances)) for name in ARCHITECTURES}
    return recall, {**common, "layers": course.layers, "paths": paths, "runs": gradients}


def keyed_path(found: dict[int, int]) -> dict[str, int]:
    return {str(distance): steps for distance, steps in found.items()}


def accuracies(result: dict[str, Any], task: str, architecture: str) -> dict[int, list[float]]:
    """Of each seed, by distance."""
    runs = [run for run in result["runs"] if (run["task"], run["architecture"]) == (task, architecture)]
    return {distance: [run["accuracy"][str(distance)] for run in runs] for distance in result["distances"]}


def claims(result: dict[str, Any], task: str) -> list[Claim]:
    """What the figures say of long-range dependency, means over the seeds."""
    found = []
    nearest, farthest = result["distances"][0], result["distances"][-1]
    steps = result["course"]["steps"]
    for architecture in ARCHITECTURES:
        means = {distance: mean(shares) for distance, shares in accuracies(result, task, architecture).items()}
        told = f"{means[nearest]:.0%} at {nearest}, {means[farthest]:.0%} at {farthest}"
        if architecture == "attention":
            missed = [str(distance) for distance, share in means.items() if share < LEARNED]
            at = f"; below {LEARNED:.0%} at {', '.join(missed)}" if missed else ""
            found.append(Claim(f"{task}: attention answers as well at every distance", not missed, told + at))
        else:
            unlearned = f"; not learned even at {nearest} in {steps} steps" if means[nearest] < LOST else ""
            found.append(
                Claim(
                    f"{task}: the {architecture.upper()} answers when it is near and loses it when it is far",
                    means[nearest] >= LOST > means[farthest],
                    told + unlearned,
                )
            )
    return found
