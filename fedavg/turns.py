"""Noise for contributions that take turns: correlated over rounds, so that it cancels in running totals.

Where a contribution is in every `every`-th round only, because that is the order of the cohorts or because
all of them in every round would be too much work, and chance does not decide (so that amplification by
sampling is nobody's to claim), independent noise in each round is far from the best: training uses sums over
rounds, in which noise can be made to cancel (DP-FTRL: Kairouz et al., "Practical and Private (Deep) Learning
without Sampling or Shuffling", ICML 2021; as a matrix mechanism: Denisov et al., NeurIPS 2022).

With A the matrix that takes the sums of rounds to what is wanted of them (here: running totals, with
momentum), A = B C, the noisy rows of C X are released, and what is used is B (C X + Z) = A X + B Z. C is
the square root of A cut to a band: for entries whose turns are at least a band apart, its columns do not
overlap, and a contribution's sensitivity is the norm of one column times the root of how often it takes its
turn (Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", NeurIPS 2023; the root and its band:
Kalinin, Lampert, "Banded Square Root Matrix Factorization for Differentially Private Model Training", NeurIPS
2024). The matrices are Toeplitz: a list of coefficients says all. That is also plain composition: every round
is a mechanism of its own, in which a contribution has one known coefficient.

Where this deviates from the paper:
- Noise is the clients' own, fresh in every round, and it is the *contributions* that are combined before they
  are sent (the rows of C X), each client its own; so nobody needs to remember noise, and nobody else's
  dropout can leave part of it behind. B Z is the same.
- Coefficients are rounded to quarters, and C is four times as large: whole multiples of integers are
  integers, so the bound on a contribution's norm, checked once, holds for all of them. Any C is right, this
  one is at most a few per cent worse.
- A client that misses a round goes on as if it had not. The running total is then off by what it would have
  sent, times a column of B, which fades like noise does; its guarantee only gets better.

What it does not protect against: contributions that take more turns than they should.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedavg.params import Floats

_QUARTERS = 4


def coefficients(every: int, momentum: float = 0.0) -> tuple[int, ...]:
    """By what a contribution is multiplied in the round of its turn and in those that follow, until its next.

    For running totals of sums with this momentum. (1,) if everybody is in every round: then no other is
    better. Raises `ValueError` for what is no number of rounds, or no momentum.
    """
    if isinstance(every, bool) or not isinstance(every, int) or not 1 <= every <= 1 << 16:
        raise ValueError(f"turns: expected an integer from 1 to 65536, got {every!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: expected a number from 0 to below 1, got {momentum!r}")
    if every == 1:
        return (1,)
    bands = min(every, _MOST_BANDS)
    root = np.ones(bands)  # of 1 / (1 - x)
    for j in range(1, bands):
        root[j] = root[j - 1] * (2 * j - 1) / (2 * j)
    # The square root of the product of 1 / (1 - x) and 1 / (1 - momentum x) is that of the square roots.
    found = np.convolve(root, root * momentum ** np.arange(bands))[:bands]
    return tuple(int(c) for c in np.rint(found * _QUARTERS) if c)


_MOST_BANDS = 1024  # a wider band gains nothing any more


def coefficient(series: tuple[int, ...], every: int, turn: int, round: int) -> int:
    """That of those of a `turn` (0 to `every` - 1) in a round: 0 if nothing of theirs is in it."""
    since = (round - turn) % every
    return series[since] if since < len(series) and since <= round else 0


def heaviest(series: tuple[int, ...], every: int, rounds: int) -> int:
    """The largest sum, of any contribution, of its squared coefficients over so many rounds."""
    # Turn 0 comes first, and most often.
    whole, rest = divmod(rounds, every)
    squares = [c * c for c in series]
    return whole * sum(squares) + sum(squares[:rest])


def spread(series: tuple[int, ...], rounds: int) -> float:
    """What noise of deviation 1 in each round makes in the running total: root mean square over rounds.

    Beyond 4096 rounds, extrapolated.
    """
    return float(_spread(series, min(rounds, _MOST_ROUNDS)) * max(1.0, rounds / _MOST_ROUNDS) ** 0.5)


def gain(series: tuple[int, ...], every: int, rounds: int) -> float:
    """The error of running totals over what it would be with independent noise in each round."""

    def error(of: tuple[int, ...]) -> float:
        return sqrt(heaviest(of, every, rounds)) * spread(of, rounds)

    return error(series) / error((1,))


_MOST_ROUNDS = 1 << 12


@lru_cache(maxsize=64)
def _spread(series: tuple[int, ...], rounds: int) -> float:
    totals = _undone(series, np.ones(rounds))
    return float(np.sqrt(np.cumsum(totals**2).mean()))


def _undone(series: tuple[int, ...], values: Floats) -> Floats:
    """What has these values when C is applied to it."""
    found = np.zeros(len(values))
    for t in range(len(values)):
        before = sum(c * found[t - j] for j, c in enumerate(series[1 : t + 1], 1))
        found[t] = (values[t] - before) / series[0]
    return found


class Sender:
    """A client's side: what it sends in each round, of what it contributed in this and in rounds before."""

    def __init__(self, coefficients: tuple[int, ...]) -> None:
        self._coefficients = coefficients
        self._before: deque[NDArray[np.int64]] = deque(maxlen=len(coefficients) - 1)

    def send(self, contribution: NDArray[np.int64]) -> NDArray[np.int64]:
        """What to send in a round in which it contributes this (zeros, if it is not its turn)."""
        sent: NDArray[np.int64] = self._coefficients[0] * contribution
        for coefficient, before in zip(self._coefficients[1:], self._before, strict=False):
            sent += coefficient * before
        self._before.appendleft(contribution)
        return sent


class Receiver:
    """The server's side: an estimate of the sum of a round's contributions from what was sent.

    Single estimates are off by more than running totals of them are.
    """

    def __init__(self, coefficients: tuple[int, ...]) -> None:
        self._coefficients = coefficients
        self._before: deque[Floats | None] = deque(maxlen=len(coefficients) - 1)

    def receive(self, total: Floats) -> Floats:
        """The estimate for a round, of the sum of what was sent."""
        estimate: Floats = total.astype(np.float64)
        for coefficient, before in zip(self._coefficients[1:], self._before, strict=False):
            if before is not None:
                estimate -= coefficient * before
        estimate /= self._coefficients[0]
        self._before.appendleft(estimate)
        return estimate

    def skip(self) -> None:
        """A round had no sum."""
        self._before.appendleft(None)
