"""Models of other libraries as named numpy arrays, and back into a model of the same kind.

Out: `to_arrays(model)`, whose values `Layout` flattens. Back: `from_arrays(model, arrays)` with what
`Layout.restore` gives:

    before = to_arrays(model)
    layout = Layout.of(before.values())
    start = layout.flatten(before.values())
    update = layout.flatten(to_arrays(trained).values()) - start          # then `Codec.encode`
    model = from_arrays(model, layout.restore(start + mean, before.values()))

No framework is imported unless the model comes from it. It does not know what arrays mean: sites must
have the same architecture and, for a classifier, the same classes in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy, deepcopy
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedavg.params import is_averaged, narrow

M = TypeVar("M")

ACCEPTED = (
    "a list or tuple of numpy arrays (what Keras' get_weights() gives and set_weights() takes), a mapping "
    "of names to arrays, a PyTorch state_dict, or a fitted scikit-learn estimator with coef_ or coefs_"
)

_WEIGHTS = ("coef_", "coefs_")
_ELSEWHERE = ("offset_", "_x_mean")  # of one-class SVMs, of PLS: predictions rest on them too
_PARAMETERS = ("coef_", "intercept_", "coefs_", "intercepts_")
_HINTS = {"torch": "its state_dict()", "keras": "its get_weights()", "tensorflow": "its get_weights()"}
_TORCH_16 = ("float16", "bfloat16")
_TORCH_FLOATS = ("float64", "float32", *_TORCH_16)
_TORCH_KEPT = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")


def to_arrays(model: Any) -> dict[str, NDArray[Any]]:
    """The model's arrays by name, in its order; copies, so that training goes on without changing them.

    A list or tuple has the names "0", "1", ...; a mapping its own; an estimator those of its attributes,
    numbered where they are lists ("coefs_.0"). 16-bit tensors of PyTorch come as float32, since numpy has no
    bfloat16. Raises `ValueError` for anything but `ACCEPTED`, and for arrays that are not of floats,
    integers or booleans.
    """
    return {name: _array(value, _dtype(name, value)) for name, value in _values(model).items()}


def from_arrays(model: M, arrays: Mapping[str, Any] | Iterable[Any]) -> M:
    """A new model of the kind of `model`, which stays as it is, with `arrays` in place of its own.

    `arrays` have its names, or come in its order. Shapes must be equal; floats are given the model's dtype
    (and device), others must have it. A mapping that is not a `dict` comes back as one. Of an estimator
    everything else is a deep copy. Raises `ValueError` where that cannot be, or a value is too large.
    """
    values = _values(model)
    given = _named(values, arrays)
    made = {name: _like(name, value, given[name]) for name, value in values.items()}
    if isinstance(model, Mapping):
        # A copy for what else it holds: OrderedDict, and the `_metadata` of a state_dict.
        mapping: Any = copy(model) if isinstance(model, dict) else {}
        mapping.update(made)
        return mapping  # type: ignore[no-any-return]
    if isinstance(model, (list, tuple)):
        rebuild: Any = getattr(model, "_make", type(model))  # a named tuple takes its fields one by one
        return rebuild(list(made.values()))  # type: ignore[no-any-return]
    return _estimator_with(model, made)


# ----------------------------------------------------------------------------------------- the model


def _values(model: Any) -> dict[str, Any]:
    """The model's own arrays or tensors by name."""
    if isinstance(model, Mapping):
        found = dict(model.items())
        for name in found:
            if not isinstance(name, str):
                raise ValueError(f"model: expected names that are strings, got {name!r}")
    elif isinstance(model, (list, tuple)):
        found = {str(i): value for i, value in enumerate(model)}
    elif _is_from("sklearn", model) and hasattr(model, "fit"):
        found = _estimator(model)
    else:
        found, kind = {}, type(model)
        hint = next((f"; give {what}" for package, what in _HINTS.items() if _is_from(package, model)), "")
        raise ValueError(f"model: expected {ACCEPTED}; got {kind.__module__}.{kind.__qualname__}{hint}")
    if not found:
        raise ValueError("model: expected at least one array, got none")
    for name, value in found.items():
        _dtype(name, value)
    return found


def _named(values: Mapping[str, Any], arrays: Mapping[str, Any] | Iterable[Any]) -> dict[str, NDArray[Any]]:
    if isinstance(arrays, Mapping):
        wrong = sorted(map(str, set(values) ^ set(arrays)))
        if wrong:
            raise ValueError(f"arrays: expected the names of the model; it differs in {', '.join(wrong)}")
        return {name: np.asarray(arrays[name]) for name in values}
    given = [np.asarray(a) for a in arrays]
    if len(given) != len(values):
        raise ValueError(f"arrays: expected {len(values)}, got {len(given)}")
    return dict(zip(values, given, strict=True))


def _is_from(package: str, value: Any) -> bool:
    """Whether a value's class, or one it inherits from, comes from a package: without importing it."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(value).__mro__)


# ------------------------------------------------------------------------------------------ an array


def _dtype(name: str, value: Any) -> np.dtype[Any]:
    """The dtype of a value of the model as an array; `ValueError` if it cannot be one."""
    if _is_tensor(value):
        kind = _check_tensor(name, value)
        # Both 16-bit formats take the same way, and numpy has no bfloat16.
        return np.dtype("float32" if kind in _TORCH_16 else kind)
    if type(value) is float:  # an estimator's intercept that was not fitted
        return np.dtype(np.float64)
    if not isinstance(value, (np.ndarray, np.generic)) or isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected a numpy array or a tensor, got {type(value).__name__}")
    is_averaged(value.dtype, name)
    return value.dtype


def _array(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A value of the model as a new array."""
    if _is_tensor(value):
        value = (value.float() if dtype == np.float32 else value).numpy(force=True)
    return np.array(value, dtype, order="C")


def _like(name: str, value: Any, array: NDArray[Any]) -> Any:
    """`array` as what `value` is: a new array, number or tensor of its dtype."""
    shape, dtype = np.shape(value), _dtype(name, value)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
    floats = is_averaged(dtype, name)
    if is_averaged(array.dtype, name) != floats or not (floats or array.dtype == dtype):
        raise ValueError(f"{name}: expected {dtype}, got {array.dtype}")
    if _is_tensor(value):
        return _tensor_like(name, value, array)
    made = narrow(array, dtype, name) if floats else np.array(array, order="C")
    if isinstance(value, np.ndarray):
        return made
    return float(made) if type(value) is float else made[()]


# ------------------------------------------------------------------------------------------- PyTorch


def _is_tensor(value: Any) -> bool:
    return _is_from("torch", value) and isinstance(value, import_module("torch").Tensor)


def _check_tensor(name: str, tensor: Any) -> str:
    """Its dtype's name; `ValueError` for what numpy cannot hold, or what holds no numbers."""
    torch = import_module("torch")
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _TORCH_FLOATS + _TORCH_KEPT:
        raise ValueError(f"{name}: expected one of {', '.join(_TORCH_FLOATS + _TORCH_KEPT)}, got {kind}")
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise ValueError(
            f"{name}: expected a dense tensor with values, got {tensor.layout} on {tensor.device}"
        )
    return kind


def _tensor_like(name: str, tensor: Any, array: NDArray[Any]) -> Any:
    """A new tensor of the same dtype, device, class and `requires_grad`."""
    torch = import_module("torch")
    floats = tensor.is_floating_point()
    source = torch.from_numpy(narrow(array, np.float64, name) if floats else np.array(array, order="C"))
    cast = source.to(tensor.dtype)
    if floats and bool((cast.isinf() & source.isfinite()).any()):
        raise ValueError(f"{name}: a value is beyond the largest {tensor.dtype}")
    made = torch.empty_like(tensor, requires_grad=False)
    made.copy_(cast)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


# -------------------------------------------------------------------------------------- scikit-learn


def _estimator(model: Any) -> dict[str, Any]:
    """The fitted arrays of an estimator that predicts with weights and nothing else."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    kind = type(model).__name__
    try:
        check_is_fitted(model)
    except NotFittedError:
        raise ValueError(f"{kind}: not fitted yet: it has no arrays before `fit`") from None
    # Attributes of its own only: the linear SVC's coef_ is computed from its support vectors when asked.
    own = vars(model)
    if not any(name in own for name in _WEIGHTS) or any(name in own for name in _ELSEWHERE):
        raise ValueError(
            f"{kind}: cannot be averaged: it does not predict with coef_ and intercept_ of its own alone, as "
            "trees, neighbours and kernels do not; of a pipeline or a search, give the estimator in it"
        )
    found: dict[str, Any] = {}
    for name in (p for p in _PARAMETERS if p in own):
        if isinstance(own[name], list):
            found |= {f"{name}.{i}": value for i, value in enumerate(own[name])}
        else:
            found[name] = own[name]
    return found


def _estimator_with(model: M, values: Mapping[str, Any]) -> M:
    made = deepcopy(model)
    for name, value in values.items():
        attribute, _, place = name.partition(".")
        old = getattr(made, attribute)
        old = old[int(place)] if place else old
        if isinstance(old, np.ndarray):
            old[...] = value  # in place: the optimiser of a perceptron holds the same arrays
        else:
            setattr(made, attribute, value)
    return made
