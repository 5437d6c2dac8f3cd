"""Splitting one data set among hospitals: evenly, by label skew, by size, or by a column.

Every function returns hospital name -> indices of its records, covers each record exactly once, and
leaves nobody with fewer than `least`. numpy's generator is fine here: nothing is secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Partition = dict[str, NDArray[np.int64]]


def iid(records: int, names: Sequence[str], rng: np.random.Generator, least: int = 2) -> Partition:
    """Shuffled, in equal parts."""
    _check(records, names, least)
    return dict(zip(names, map(np.sort, np.array_split(rng.permutation(records), len(names))), strict=True))


def quantity(
    records: int, names: Sequence[str], rng: np.random.Generator, alpha: float = 1.0, least: int = 2
) -> Partition:
    """Sizes drawn from a Dirichlet distribution: small alpha, very uneven hospitals."""
    _check(records, names, least, alpha)
    spare = records - least * len(names)
    sizes = least + rng.multinomial(spare, rng.dirichlet([alpha] * len(names)))
    parts = np.split(rng.permutation(records), np.cumsum(sizes)[:-1])
    return dict(zip(names, map(np.sort, parts), strict=True))


def dirichlet(
    labels: NDArray[Any], names: Sequence[str], rng: np.random.Generator, alpha: float = 0.5, least: int = 2
) -> Partition:
    """Each class spread by its own Dirichlet draw (Hsu et al. 2019): label skew and uneven sizes."""
    _check(len(labels), names, least, alpha)
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        owner[members] = rng.choice(len(names), len(members), p=rng.dirichlet([alpha] * len(names)))
    sizes = np.bincount(owner, minlength=len(names))
    while sizes.min() < least:  # move records from the largest to the smallest
        giver, taker = int(sizes.argmax()), int(sizes.argmin())
        owner[rng.choice(np.flatnonzero(owner == giver))] = taker
        sizes = np.bincount(owner, minlength=len(names))
    return {name: np.flatnonzero(owner == i) for i, name in enumerate(names)}


def by_column(values: Sequence[Any], least: int = 2) -> Partition:
    """One hospital for each distinct value of a column."""
    column = np.asarray([str(v) for v in values])
    parts = {str(value): np.flatnonzero(column == value) for value in np.unique(column)}
    small = [name for name, part in parts.items() if len(part) < least]
    if small:
        raise ValueError(f"partition: {small[0]!r} has fewer than {least} records")
    return parts


def _check(records: int, names: Sequence[str], least: int, alpha: float = 1.0) -> None:
    if not names or len(set(names)) != len(names):
        raise ValueError("partition: expected at least one hospital and no name twice")
    if records < least * len(names):
        raise ValueError(
            f"partition: {records} records are too few for {len(names)} hospitals of at least {least}"
        )
    if not 0 < alpha < 1e6:
        raise ValueError(f"partition: alpha must be positive and below a million, got {alpha}")
