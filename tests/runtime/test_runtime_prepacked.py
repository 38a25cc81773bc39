"""Weights in the order of a CPU's kernels: the same products, and a model that is as it was afterwards."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch import nn

from grolang.runtime import prepacked as room
from grolang.runtime.prepacked import prepacked
from grolang.runtime.sampling import Generate, Sampling

works = pytest.mark.skipif(not room._works(), reason="this torch has no oneDNN, or its products have other names")


class Own(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def changed(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if "forward" in layer.__dict__]


@works
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 1), (2, 5, 3), (0,)])
def test_products_are_the_same(bias: bool, shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(300, 437, bias=bias), torch.randn(*shape, 300)
    with torch.no_grad():
        expected = layer(x)
        with prepacked(layer):
            assert changed(layer) == [""]
            found, turned = layer(x), layer(x.flip(0).flip(0))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-5)
        assert not changed(layer) and torch.equal(layer(x), expected)


@works
def test_weights_that_moved_are_read_anew() -> None:
    layer, x = nn.Linear(256, 512, bias=False), torch.ones(1, 256)
    with torch.no_grad():
        for value in (1.0, 2.0):
            layer.weight.fill_(value)
            with prepacked(layer):
                assert layer(x)[0, 0] == 256 * value


def test_what_is_not_a_large_linear_map_of_fp32_stays_as_it_is() -> None:
    maps: dict[str, Any] = {
        "large": nn.Linear(256, 512),
        "small": nn.Linear(256, 511),
        "own": Own(256, 512),
        "bf16": nn.Linear(256, 512, dtype=torch.bfloat16),
        "fp64": nn.Linear(256, 512, dtype=torch.float64),
        "hooked": nn.Linear(256, 512),
        "meta": nn.Linear(256, 512, device="meta"),
    }
    maps["hooked"].forward = hooked = maps["hooked"].forward
    with prepacked(nn.ModuleDict(maps)):
        assert changed(nn.ModuleDict(maps)) == ["large"] * room._works() + ["hooked"]
    assert maps["hooked"].forward is hooked
    with torch.autocast("cpu", torch.bfloat16), prepacked(maps["large"]):
        assert not changed(maps["large"]) and maps["large"](torch.ones(1, 256)).dtype == torch.bfloat16


def test_a_model_comes_back_as_it_was_whatever_happens() -> None:
    model = tiny_model(hidden_size=512)
    with pytest.raises(KeyboardInterrupt), prepacked(model):
        assert bool(changed(model)) == room._works()
        raise KeyboardInterrupt
    assert not changed(model)


@works
@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory"), KeyboardInterrupt()])
def test_a_copy_that_fails_changes_nothing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for more copies the rest is read as it is; Ctrl-C leaves no layer with one."""
    model, packed, made = tiny_model(hidden_size=512), room._packed, list[torch.Tensor]()

    def third_fails(weight: torch.Tensor) -> torch.Tensor:
        if len(made) == 2:
            raise error
        made.append(weight)
        return packed(weight)

    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(ids).logits
        monkeypatch.setattr(room, "_packed", third_fails)
        with suppress(KeyboardInterrupt), prepacked(model):
            assert len(changed(model)) == 2 and isinstance(error, RuntimeError)
            torch.testing.assert_close(model(ids).logits, expected)
    assert len(made) == 2 and not changed(model)
    model(ids).logits.sum().backward()
    assert all(one.grad is not None for one in model.parameters())


@works
def test_completions_are_drawn_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls, product = tiny_model(hidden_size=512), list[int](), room._product

    def counted(*told: Any) -> torch.Tensor:
        calls.append(1)
        return product(*told)

    def drawn() -> list[Any]:
        return Generate(model)([[5, 6, 7], [8]], [1, 2], Sampling(frozenset([3]), 12), keep_logp=True)

    monkeypatch.setattr(room, "_product", counted)
    ours, count = drawn(), len(calls)
    monkeypatch.setattr(room, "_works", lambda: False)
    theirs = drawn()
    assert count and len(calls) == count
    assert [one.ids for one in ours] == [one.ids for one in theirs]
    for left, right in zip(ours, theirs, strict=True):
        assert left.logp == pytest.approx(right.logp, abs=1e-4)


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_torch_without_these_products_keeps_its_own(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(room, "_product", gone if fault == "missing" else lambda packed, bias, x: x[..., :96])
    assert not room._works.__wrapped__()
