"""PyTorch's state_dict as arrays and back: names, order, dtypes, devices and values."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedavg.codec import Codec
from fedavg.formats import from_arrays, to_arrays
from fedavg.params import Layout

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
KEPT = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64,
)  # fmt: skip
shapes = st.lists(st.integers(0, 3), max_size=3)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def same(one: torch.Tensor, two: torch.Tensor) -> None:
    assert (one.dtype, one.shape, one.device) == (two.dtype, two.shape, two.device)
    assert torch.equal(one.detach().nan_to_num(7), two.detach().nan_to_num(7))
    assert torch.equal(one.isnan(), two.isnan())
    assert one.requires_grad == two.requires_grad
    assert type(one) is type(two)
    assert one.numel() == 0 or one.data_ptr() != two.data_ptr()


def test_a_state_dict_there_and_back() -> None:
    model = net()
    model(torch.ones(5, 3))  # batch normalisation counts
    state = model.state_dict()
    found = to_arrays(state)
    assert list(found) == list(state)
    assert found["1.num_batches_tracked"].shape == ()
    again = from_arrays(state, found)
    assert type(again) is OrderedDict
    assert list(again) == list(state)
    assert again._metadata == state._metadata  # type: ignore[attr-defined]
    for name in state:
        same(state[name], again[name])
    other = net()
    other.load_state_dict(again)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_parameter_is_not_changed_by_what_is_done_to_arrays_and_back() -> None:
    model = net()
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    found = to_arrays(state)
    again = from_arrays(state, {n: a * 0 for n, a in found.items()})
    for array in found.values():
        array[...] = 1
    for tensor in again.values():
        tensor.zero_()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_arrays_are_those_of_now() -> None:
    """A state_dict shares memory with the model: training must not reach what was taken before."""
    model = net()
    before = to_arrays(model.state_dict())
    kept = {name: array.copy() for name, array in before.items()}
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(8, 3)).square().sum().backward()
    optimiser.step()
    after = to_arrays(model.state_dict())
    assert (after["0.weight"] != before["0.weight"]).any()
    assert all((before[name] == kept[name]).all() for name in kept)


def test_a_round_of_averaging() -> None:
    """Two sites train; the counter of batches stays, the running statistics are averaged."""
    model = net()
    before = to_arrays(model.state_dict())
    layout = Layout.of(before.values())
    codec, start = Codec(layout.dim, clipping_norm=100.0, bits=32), layout.flatten(before.values())
    assert layout.dim == sum(t.numel() for t in model.state_dict().values()) - 1
    total, trained = np.zeros(codec.length, np.int64), []
    for site in range(2):
        own = net()
        own.load_state_dict(model.state_dict())
        for _ in range(3 + site):
            own(torch.randn(8, 3))
        trained.append(own.state_dict())
        total += codec.encode(layout.flatten(to_arrays(own.state_dict()).values()) - start)
    mean, _ = codec.decode(total, 2)
    model.load_state_dict(from_arrays(model.state_dict(), layout.restore(start + mean, before.values())))
    state = model.state_dict()
    assert state["1.num_batches_tracked"] == 0
    wanted = (trained[0]["1.running_mean"] + trained[1]["1.running_mean"]) / 2
    assert wanted.abs().max() > 0
    torch.testing.assert_close(state["1.running_mean"], wanted, atol=1e-5, rtol=0)


@given(st.sampled_from(FLOATS), shapes, st.integers(0, 99))
def test_floats_are_restored_bit_for_bit(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator, dtype=torch.float64) * 100).to(dtype)
    found = to_arrays({"a": tensor})
    wanted = {torch.float64: "float64"}.get(dtype, "float32")
    assert (found["a"].dtype, found["a"].shape) == (wanted, tuple(shape))
    same(from_arrays({"a": tensor}, found)["a"], tensor)
    layout = Layout.of(found.values())
    same(from_arrays({"a": tensor}, layout.restore(layout.flatten(found.values())))["a"], tensor)


@given(st.sampled_from(KEPT), shapes, st.integers(0, 99))
def test_integers_are_restored(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2, shape)
    tensor = torch.tensor(values).to(dtype)
    found = to_arrays({"a": tensor})
    assert found["a"].dtype == str(dtype).removeprefix("torch.")
    assert Layout.of(found.values()).dim == 0
    same(from_arrays({"a": tensor}, found)["a"], tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_extremes_of_a_dtype(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    tensor = torch.tensor([info.max, info.min, info.tiny, -0.0, float("inf"), float("nan")], dtype=dtype)
    (again,) = from_arrays([tensor], to_arrays([tensor]))
    same(again, tensor)
    assert again.signbit()[3]


@pytest.mark.parametrize(("dtype", "value"), [
    (torch.float16, 70000.0), (torch.bfloat16, 3.4e38), (torch.float32, 1e39), (torch.float16, -1e300),
])  # fmt: skip
def test_a_value_too_large_is_refused(dtype: torch.dtype, value: float) -> None:
    with pytest.raises(ValueError, match=f"a: a value is beyond the largest {dtype}"):
        from_arrays({"a": torch.zeros(2, dtype=dtype)}, {"a": np.array([0.0, value])})


def test_gradients_parameters_and_strides() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)[::2]
    assert not tensor.is_contiguous()
    model = {
        "strided": tensor,
        "gradient": torch.ones(3, requires_grad=True),
        "parameter": nn.Parameter(torch.ones(2)),
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
        "expanded": torch.ones(1).expand(4),
        "computed": torch.ones(2, requires_grad=True) * 2,
        "conjugate": torch.tensor([1 + 2j]).conj().imag,  # negated when read
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
    }
    again = from_arrays(model, to_arrays(model))
    for name in model:
        same(again[name], model[name])
    assert again["strided"].stride() == torch.empty_like(tensor).stride()
    assert again["computed"].is_leaf
    again["expanded"][0] = 5
    assert again["expanded"].tolist() == [5, 1, 1, 1]
    kept = nn.Linear(2, 2).state_dict(keep_vars=True)
    assert all(isinstance(t, nn.Parameter) for t in from_arrays(kept, to_arrays(kept)).values())


def test_a_list_of_tensors() -> None:
    model = list(net().parameters())
    again = from_arrays(model, to_arrays(model))
    for one, two in zip(model, again, strict=True):
        same(one, two)


def test_channels_last_stays() -> None:
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    (again,) = from_arrays([tensor], to_arrays([tensor]))
    same(again, tensor)
    assert again.is_contiguous(memory_format=torch.channels_last)


def test_inference_tensors() -> None:
    with torch.inference_mode():
        state = nn.Linear(2, 2).state_dict()
    again = from_arrays(state, to_arrays(state))
    again["weight"].add_(1)
    assert not again["weight"].is_inference()


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(2, dtype=torch.complex64), "got complex64"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "got float8_e4m3fn"),
        (torch.zeros(2, device="meta"), "a dense tensor with values, got torch.strided on meta"),
        (torch.eye(2).to_sparse(), "a dense tensor with values, got torch.sparse_coo on cpu"),
        (torch.Size([2]), "expected a numpy array or a tensor, got Size"),
    ],
)
def test_other_tensors_are_refused(tensor: Any, said: str) -> None:
    for call in (lambda: to_arrays({"a": tensor}), lambda: from_arrays({"a": tensor}, [np.zeros(2)])):
        with pytest.raises(ValueError, match=r"^a: expected") as caught:
            call()
        assert said in str(caught.value)


def test_a_module_is_told_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"got torch\.nn\.modules\.linear\.Linear; give its state_dict\(\)$"):
        to_arrays(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 1)), r"a: expected shape \[2\], got \[2, 1\]"),
        (np.zeros(2, int), "a: expected float32, got int64"),
        (np.array(["x", "y"]), "a: expected floats, integers or booleans, got <U1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_arrays({"a": torch.zeros(2, dtype=torch.float16)}, {"a": array})
    with pytest.raises(ValueError, match="n: expected int64, got float64"):
        from_arrays({"n": torch.tensor(3)}, {"n": np.array(3.0)})


def test_arrays_of_any_byte_order_and_width() -> None:
    for array in (np.array([1.0, 2.0], ">f8"), np.array([1, 2], np.longdouble), np.float16([1, 2])):
        again = from_arrays({"a": torch.zeros(2)}, {"a": array[::-1]})["a"]
        assert (again.dtype, again.tolist()) == (torch.float32, [2, 1])
