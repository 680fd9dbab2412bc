"""Laws through measured points."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """k of the power law values ~ lengths^k, least squares of the logarithms."""
    slope, _ = np.polyfit(np.log(lengths), np.log(values), 1)
    return float(slope)


def quadratic(lengths: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """c, a, b >= 0 of values ~ c + a L + b L^2, with the least sum of squared relative errors.

    Relative, since the values span orders of magnitude; not negative, since each term is work that is done.
    """
    scale = 1 / np.asarray(values, np.float64)
    columns = np.vander(np.asarray(lengths, np.float64), 3, increasing=True) * scale[:, None]
    best, best_error = (0.0, 0.0, 0.0), np.inf
    # Three terms: the best non-negative fit is the least-squares fit of one of seven subsets.
    for size in (1, 2, 3):
        for terms in combinations(range(3), size):
            found, *_ = np.linalg.lstsq(columns[:, terms], np.ones(len(scale)), rcond=None)
            error = float(((columns[:, terms] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < best_error:
                weights = np.zeros(3)
                weights[list(terms)] = found
                best, best_error = (float(weights[0]), float(weights[1]), float(weights[2])), error
    return best
