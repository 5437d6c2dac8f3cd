"""Data to train on: two medical sets that come with scikit-learn, or a CSV file of the user's own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedavg.params import Floats
from fedavg.table import read_lines

CLASSIFICATION, REGRESSION = "classification", "regression"
_MANY = 20  # a numeric label with more distinct values than this is a quantity, not a class


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records `x` (records, features) and `y`: classes 0 to len(classes) - 1, or float targets.

    `ranges` are the lowest and highest value of each feature and, for a float target, of that: public, known
    from elsewhere, none for a file of the user's own unless they are given.
    """

    name: str
    x: Floats
    y: NDArray[Any]
    features: tuple[str, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    ranges: tuple[tuple[float, float], ...] | None = None

    @property
    def task(self) -> str:
        """Classification if there are classes, else regression."""
        return CLASSIFICATION if self.classes else REGRESSION


# What the data sets' own published descriptions say, rounded outwards: means, standard errors and worst
# values of ten measures of cell nuclei; age, sex, body mass, blood pressure, six serum values, progression.
_NUCLEI = (
    (5, 30), (5, 40), (40, 200), (100, 2600), (0.05, 0.2), (0, 0.4), (0, 0.5), (0, 0.25), (0.1, 0.35),
    (0.04, 0.1),
    (0, 3), (0, 5), (0, 25), (0, 550), (0, 0.04), (0, 0.15), (0, 0.4), (0, 0.06), (0, 0.08), (0, 0.03),
    (5, 40), (10, 50), (50, 260), (150, 4300), (0.05, 0.25), (0, 1.1), (0, 1.3), (0, 0.3), (0.15, 0.7),
    (0.05, 0.21),
)  # fmt: skip
_BLOOD = (
    (18, 80), (1, 2), (15, 45), (60, 140), (90, 310), (40, 250), (20, 100), (1, 10), (3, 6.5), (50, 130),
    (0, 350),
)  # fmt: skip


def breast_cancer() -> Dataset:
    """Wisconsin diagnostic breast cancer: 569 tumours, 30 features of cell nuclei, malignant or benign.

    W. Wolberg, O. Mangasarian, N. Street, W. Street (1995), UCI Machine Learning Repository. Class 1 is
    malignant: what a doctor wants to find.
    """
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = tuple(str(n) for n in data.feature_names)
    return Dataset(
        "breast-cancer", data.data.astype(np.float64), 1 - data.target, names, ("benign", "malignant"),
        ranges=_NUCLEI,
    )  # fmt: skip


def diabetes() -> Dataset:
    """Diabetes progression: 442 patients, 10 features, a measure of progression after one year.

    B. Efron, T. Hastie, I. Johnstone, R. Tibshirani (2004), "Least Angle Regression".
    """
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    return Dataset(
        "diabetes",
        data.data.astype(np.float64),
        data.target.astype(np.float64),
        tuple(data.feature_names),
        (),
        ranges=_BLOOD,
    )


DATASETS = {"breast-cancer": breast_cancer, "diabetes": diabetes}


def from_csv(path: str | Path, label: str, group: str | None = None, ignore: Collection[str] = ()) -> Dataset:
    """A CSV file with a header; every column but `label`, `group` and those to `ignore` is a feature.

    Features must be numeric and complete.

    `group` names the column that says which hospital a record belongs to. A label that is not numeric,
    or takes at most 20 values that are all whole numbers, is a class; else it is a target. Raises
    `ValueError` naming file, line and column for anything that cannot be used.
    """
    path = Path(path)
    header, body = read_lines(path)
    for wanted in (label, group, *ignore):
        if wanted is not None and wanted not in header:
            raise ValueError(f"{path}: no column {wanted!r}; the columns are {', '.join(header)}")
    kept = [i for i, name in enumerate(header) if name not in (label, group, *ignore)]
    if not kept:
        raise ValueError(f"{path}: no column is left for features")
    x = np.array([[_number(path, line, header[i], row[i]) for i in kept] for line, row in body])
    y, classes = _labels(path, label, [(line, row[header.index(label)].strip()) for line, row in body])
    groups = None if group is None else tuple(_group(path, line, group, row, header) for line, row in body)
    return Dataset(path.stem, x, y, tuple(header[i] for i in kept), classes, groups)


def _group(path: Path, line: int, group: str, row: list[str], header: list[str]) -> str:
    name = row[header.index(group)].strip()
    if not name:
        raise ValueError(f"{path}, line {line}, column {group!r}: the hospital's name is missing")
    return name


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(
            f"{path}, line {line}, column {column!r}: expected a number, got {text!r}: code it as numbers, "
            "or leave the column out (ignore)"
        ) from None
    if not np.isfinite(value):
        raise ValueError(f"{path}, line {line}, column {column!r}: expected a finite number, got {text!r}")
    return value


def _labels(path: Path, label: str, texts: list[tuple[int, str]]) -> tuple[NDArray[Any], tuple[str, ...]]:
    for line, text in texts:
        if not text:
            raise ValueError(f"{path}, line {line}, column {label!r}: the label is missing")
    try:
        numbers = np.array([float(text) for _, text in texts])
    except ValueError:  # names of classes
        names, y = np.unique(np.array([text for _, text in texts]), return_inverse=True)
        classes = tuple(str(v) for v in names)
    else:
        if not np.isfinite(numbers).all():
            line, text = texts[int(np.flatnonzero(~np.isfinite(numbers))[0])]
            raise ValueError(f"{path}, line {line}, column {label!r}: expected a finite number, got {text!r}")
        if (numbers != np.rint(numbers)).any() or len(np.unique(numbers)) > _MANY:
            return numbers, ()
        values, y = np.unique(numbers, return_inverse=True)
        classes = tuple(str(int(v)) for v in values)
    if len(classes) < 2:
        raise ValueError(f"{path}, column {label!r}: expected at least two classes, got {len(classes)}")
    return y.astype(np.int64), classes
