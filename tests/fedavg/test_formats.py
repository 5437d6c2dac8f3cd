"""Models as named arrays and back: numpy, mappings, scikit-learn. PyTorch is in `adapters/`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import linear_model as linear
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from fedavg.codec import Codec
from fedavg.formats import from_arrays, to_arrays
from fedavg.params import Layout

DTYPES = ("f2", "f4", "f8", ">f4", "g", "i8", ">i2", "u1", "?")
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
lists = st.lists(arrays, min_size=1, max_size=5)
mappings = st.dictionaries(st.text(max_size=5), arrays, min_size=1, max_size=5)

Pair = namedtuple("Pair", ["weights", "bias"])


def same(one: Any, two: Any) -> None:
    assert one.dtype == two.dtype
    assert one.shape == two.shape
    assert one.tobytes() == two.tobytes()


def zeros(found: dict[str, Any]) -> dict[str, Any]:
    """Other values where there may be others: floats."""
    return {n: np.zeros_like(a) if a.dtype.kind == "f" else a for n, a in found.items()}


# ----------------------------------------------------------------------------------------------- numpy


@given(lists, st.sampled_from([list, tuple]))
def test_lists_there_and_back(given_arrays: list[Any], kind: Any) -> None:
    model = kind(given_arrays)
    found = to_arrays(model)
    assert list(found) == [str(i) for i in range(len(model))]
    for again in (from_arrays(model, found), from_arrays(model, found.values())):
        assert type(again) is kind
        for before, after in zip(model, again, strict=True):
            same(before, after)
            assert type(after) is np.ndarray
            assert not np.shares_memory(before, after)


@given(mappings, st.sampled_from([dict, OrderedDict]))
def test_mappings_there_and_back(named: dict[str, Any], kind: Any) -> None:
    model = kind(named)
    found = to_arrays(model)
    assert list(found) == list(named)
    again = from_arrays(model, dict(reversed(found.items())))
    assert type(again) is kind
    assert list(again) == list(named)
    for name in named:
        same(named[name], again[name])
        assert not np.shares_memory(named[name], found[name])


@given(lists)
def test_through_a_layout(given_arrays: list[Any]) -> None:
    """`Layout` restores from the vector exactly what `to_arrays` gave."""
    found = to_arrays(given_arrays)
    layout = Layout.of(found.values())
    again = from_arrays(given_arrays, layout.restore(layout.flatten(found.values()), found.values()))
    for before, after in zip(given_arrays, again, strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


@given(lists)
def test_nothing_given_is_changed(given_arrays: list[Any]) -> None:
    before = deepcopy(given_arrays)
    found = to_arrays(given_arrays)
    again = from_arrays(given_arrays, zeros(found))
    for array in [*found.values(), *again]:
        array[...] = 1
    for one, two in zip(before, given_arrays, strict=True):
        same(one, two)


def test_arrays_are_those_of_now() -> None:
    """Training goes on in the same memory; what was taken before stays."""
    model = [np.zeros(3)]
    before = to_arrays(model)
    model[0] += 1
    assert before["0"].tolist() == [0, 0, 0]


def test_kinds_of_containers() -> None:
    pair = Pair(np.ones(2), np.zeros(1))
    again = from_arrays(pair, [np.zeros(2), np.ones(1)])
    assert isinstance(again, Pair)
    assert again.bias.tolist() == [1]
    default: defaultdict[str, Any] = defaultdict(list, a=np.ones(1))
    found = from_arrays(default, {"a": np.zeros(1)})
    assert found.default_factory is list
    assert default["a"].tolist() == [1]
    user = UserDict(a=np.ones(1))
    plain: Any = from_arrays(user, {"a": np.zeros(1)})
    assert type(plain) is dict
    assert user["a"].tolist() == [1]
    number = from_arrays({"b": np.float32(2)}, {"b": np.array(3.0)})["b"]
    assert (type(number), number) == (np.float32, 3)


def test_read_only_and_strided_arrays() -> None:
    array = np.arange(12.0).reshape(3, 4).T[::2]
    array.flags.writeable = False
    (again,) = from_arrays([array], to_arrays([array]))
    assert again.tolist() == array.tolist()
    again[0] = 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ([np.zeros(2, complex)], "0: expected floats, integers or booleans, got complex128"),
        ({"a": np.array(["x"])}, "a: expected floats, integers or booleans, got <U1"),
        ({"a": np.array([None])}, "a: expected floats, integers or booleans, got object"),
        ({"a": [1.0]}, "a: expected a numpy array or a tensor, got list"),
        ({"a": {"b": np.zeros(1)}}, "a: expected a numpy array or a tensor, got dict"),
        ({"a": None}, "a: expected a numpy array or a tensor, got NoneType"),
        ([np.ma.masked_array([1.0], [True])], "0: expected a numpy array or a tensor, got MaskedArray"),
        ({1: np.zeros(1)}, "model: expected names that are strings, got 1"),
        ([], "model: expected at least one array, got none"),
        ({}, "model: expected at least one array, got none"),
        (np.zeros(3), "got numpy.ndarray"),
        (None, "a fitted scikit-learn estimator with coef_ or coefs_; got builtins.NoneType"),
        ("model", "got builtins.str"),
        (linear.LinearRegression, "got abc.ABCMeta"),
        (type("Sequential", (), {"__module__": "keras.src.models"})(), "; give its get_weights()"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, said: str) -> None:
    for call in (lambda: to_arrays(model), lambda: from_arrays(model, {})):
        with pytest.raises(ValueError, match="expected") as caught:
            call()
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given_arrays", "said"),
    [
        ({"a": np.zeros(2)}, "it differs in n"),
        ({"a": np.zeros(2), "n": np.array(1), "x": 1, "y": 1}, "it differs in x, y"),
        ([np.zeros(2)], "arrays: expected 2, got 1"),
        ([np.zeros(3), np.array(1)], r"a: expected shape \[2\], got \[3\]"),
        ([np.zeros((2, 1)), np.array(1)], r"a: expected shape \[2\], got \[2, 1\]"),
        ([np.zeros(2, int), np.array(1)], "a: expected float16, got int64"),
        ([np.zeros(2), np.array(1.0)], "n: expected int64, got float64"),
        ([np.zeros(2), np.array(1, np.int32)], "n: expected int64, got int32"),
        ([np.zeros(2, complex), np.array(1)], "a: expected floats, integers or booleans, got complex128"),
        ([np.array([70000.0, 0]), np.array(1)], "a: a value is beyond the largest float16, 65504"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(given_arrays: Any, said: str) -> None:
    model = {"a": np.zeros(2, np.float16), "n": np.array(1)}
    with pytest.raises(ValueError, match=said):
        from_arrays(model, given_arrays)


# --------------------------------------------------------------------------------- federated averaging


def test_two_hospitals_average_a_mapping() -> None:
    """What the module's first lines show, with the codec in between."""
    model = {"weights": np.array([[1.0, 2.0]], np.float32), "seen": np.array(100), "bias": np.zeros(1)}
    before = to_arrays(model)
    layout = Layout.of(before.values())
    codec, start = Codec(layout.dim, clipping_norm=4.0, bits=32), layout.flatten(before.values())
    total = np.zeros(codec.length, np.int64)
    for change in (1.0, 2.0):
        trained = {"weights": model["weights"] + change, "seen": np.array(107), "bias": np.array([change])}
        total += codec.encode(layout.flatten(to_arrays(trained).values()) - start)
    mean, _ = codec.decode(total, 2)
    again = from_arrays(model, layout.restore(start + mean, before.values()))
    np.testing.assert_allclose(again["weights"], [[2.5, 3.5]], atol=1e-6)
    np.testing.assert_allclose(again["bias"], [1.5], atol=1e-6)
    assert again["seen"] == 100
    assert [a.dtype for a in again.values()] == [a.dtype for a in model.values()]


# ---------------------------------------------------------------------------------------- scikit-learn

X, Y = load_breast_cancer(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
WORDS = np.array(["malignant", "benign"])[Y]

ESTIMATORS = {
    "logistic": linear.LogisticRegression(max_iter=300),
    "ridge": linear.Ridge(),
    "least squares": linear.LinearRegression(),
    "no intercept": linear.LinearRegression(fit_intercept=False),
    "many targets": linear.LinearRegression(),
    "lasso": linear.Lasso(0.1),
    "sgd": linear.SGDClassifier(random_state=0),
    "sgd regressor": linear.SGDRegressor(random_state=0),
    "perceptron": linear.Perceptron(random_state=0),
    "linear svc": LinearSVC(),
    "discriminant": LinearDiscriminantAnalysis(),
    "poisson": linear.PoissonRegressor(),
    "mlp": MLPClassifier((4, 3), max_iter=5, random_state=0),
    "mlp regressor": MLPRegressor(hidden_layer_sizes=(4,), max_iter=5, random_state=0),
}


def fit(kind: str, records: slice) -> Any:
    model = deepcopy(ESTIMATORS[kind])
    y = np.stack([Y, 1 - Y], axis=1) if kind == "many targets" else Y
    classifies = hasattr(model, "predict_proba") or hasattr(model, "decision_function")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X[records], (WORDS if classifies else y)[records])


@pytest.fixture(params=ESTIMATORS)
def fitted(request: pytest.FixtureRequest) -> Any:
    return fit(request.param, slice(None))


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_arrays_are_all_that_predictions_rest_on(kind: str) -> None:
    """With another's arrays an estimator is that other."""
    one, other = fit(kind, slice(0, 250)), fit(kind, slice(250, None))
    again = from_arrays(one, to_arrays(other))
    decide = next(m for m in ("decision_function", "predict_proba", "predict") if hasattr(one, m))
    np.testing.assert_allclose(getattr(again, decide)(X), getattr(other, decide)(X))
    assert not np.allclose(getattr(one, decide)(X), getattr(other, decide)(X))


def test_an_estimator_there_and_back(fitted: Any) -> None:
    found, predicted = to_arrays(fitted), fitted.predict(X)
    again = from_arrays(fitted, found)
    assert type(again) is type(fitted)
    assert again.get_params() == fitted.get_params()
    assert (again.predict(X) == predicted).all()
    for name, array in to_arrays(again).items():
        same(array, found[name])
    if hasattr(fitted, "classes_"):
        assert again.classes_.tolist() == fitted.classes_.tolist() == ["benign", "malignant"]


def test_an_estimator_predicts_with_the_new_arrays_and_the_given_one_does_not(fitted: Any) -> None:
    found, predicted = to_arrays(fitted), fitted.predict(X)
    again = from_arrays(fitted, zeros(found))
    guess = again.predict(X)
    assert (guess == guess[0]).all(), "with zeros everywhere all records look alike"
    assert (fitted.predict(X) == predicted).all()
    for name, array in to_arrays(fitted).items():
        same(array, found[name])
    for name, array in to_arrays(again).items():
        assert array.dtype == found[name].dtype
        assert not array.any()


def test_the_mean_of_two_classifiers() -> None:
    one, two = (linear.LogisticRegression(C=c, max_iter=300).fit(X, WORDS) for c in (0.1, 10.0))
    layout = Layout.of(to_arrays(one).values())
    mean = (layout.flatten(to_arrays(one).values()) + layout.flatten(to_arrays(two).values())) / 2
    both = from_arrays(one, layout.restore(mean))
    np.testing.assert_allclose(
        both.decision_function(X), (one.decision_function(X) + two.decision_function(X)) / 2
    )
    assert both.score(X, WORDS) > 0.95


def test_names_are_those_of_the_attributes() -> None:
    x, y = load_iris(return_X_y=True)
    assert {n: a.shape for n, a in to_arrays(linear.LogisticRegression(max_iter=500).fit(x, y)).items()} == {
        "coef_": (3, 4), "intercept_": (3,),
    }  # fmt: skip
    with pytest.warns():
        perceptron = MLPClassifier((5,), max_iter=2).fit(x, y)
    assert {n: a.shape for n, a in to_arrays(perceptron).items()} == {
        "coefs_.0": (4, 5), "coefs_.1": (5, 3), "intercepts_.0": (5,), "intercepts_.1": (3,),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["mlp", "sgd"])
def test_training_goes_on_from_the_new_arrays(kind: str) -> None:
    """The optimiser of a perceptron holds its arrays too: it must be those of the copy."""
    model = deepcopy(ESTIMATORS[kind])
    model.partial_fit(X, WORDS, classes=np.unique(WORDS))
    again = from_arrays(model, to_arrays(model))
    before = to_arrays(model)
    again.partial_fit(X, WORDS)
    after = to_arrays(again)
    assert all((after[n] != before[n]).any() for n in before if n.startswith("coef"))
    for name, array in to_arrays(model).items():
        same(array, before[name])
    model.partial_fit(X, WORDS)
    for name, array in to_arrays(model).items():
        np.testing.assert_allclose(array, after[name])


def test_single_precision_stays() -> None:
    model = linear.Ridge().fit(X.astype(np.float32), Y.astype(np.float32))
    found = to_arrays(model)
    assert found["coef_"].dtype == np.float32
    wide = {name: array.astype(np.float64) for name, array in found.items()}
    assert from_arrays(model, wide).coef_.dtype == np.float32
    with pytest.raises(ValueError, match="coef_: a value is beyond the largest float32"):
        from_arrays(model, wide | {"coef_": wide["coef_"] + 1e39})


@pytest.mark.parametrize(
    "model",
    [linear.LogisticRegression(), MLPClassifier(), DecisionTreeClassifier(), make_pipeline(linear.Ridge())],
    ids=lambda m: type(m).__name__,
)
def test_an_estimator_that_was_not_fitted_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(model).__name__}: not fitted yet"):
        to_arrays(model)


@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeClassifier(), RandomForestClassifier(3), KNeighborsClassifier(), SVC(),
        SVC(kernel="linear"), linear.SGDOneClassSVM(), PLSRegression(), StandardScaler(),
        make_pipeline(StandardScaler(), linear.Ridge()),
        GridSearchCV(linear.Ridge(), {"alpha": [1.0]}),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_an_estimator_without_weights_of_its_own_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(model).__name__}: cannot be averaged: it does not predict"):
        to_arrays(deepcopy(model).fit(X, Y.astype(float) if isinstance(model, PLSRegression) else Y))


def test_sparse_weights_are_refused() -> None:
    model = linear.SGDClassifier(penalty="l1").fit(X, Y).sparsify()
    with pytest.raises(ValueError, match="coef_: expected a numpy array or a tensor, got cs"):
        to_arrays(model)


def test_no_framework_is_imported_for_others() -> None:
    code = (
        "import sys, numpy as np; from fedavg.formats import *; m = {'a': np.ones(2)};"
        "from_arrays(m, to_arrays(m)); print([f for f in ('torch', 'sklearn', 'keras') if f in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
