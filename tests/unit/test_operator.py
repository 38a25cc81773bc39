"""The fused module under torch.compile: one operator, no break in the graph, the same numbers."""

from __future__ import annotations

import copy
import pickle
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grolang

S, T, D, V = 4, 3, 6, 11


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def batch_of(dtype: torch.dtype = torch.float64) -> grolang.Batch:
    make = torch.Generator().manual_seed(0)

    def logp() -> Tensor:
        return -2 * torch.rand(S, T, dtype=dtype, generator=make)

    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    return grolang.Batch(
        mask=mask,
        group=torch.tensor([0, 0, 1, 1]),
        label=torch.tensor([1.0, -1, 1, -1], dtype=dtype),
        logp_old=logp(),
        logp_ref=logp(),
        logp_sampler=logp(),
        scores={"correct": torch.tensor([1.0, 0, 0.5, 0.25], dtype=dtype)},
        greedy_scores={"correct": torch.tensor([1.0, 1, 0, 0], dtype=dtype)},
        mismatched=grolang.Batch(mask=mask.roll(1, 0), logp=logp(), logp_ref=logp()),
    )


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    hidden = torch.randn(S, T, D, dtype=torch.float64, generator=make).to(dtype).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64, generator=make).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (S, T), generator=make)


@pytest.mark.parametrize("name", ["dpo", "kto", "remax", "tis", "gspo"])
def test_the_compiled_graph_is_whole_and_gives_the_same_gradients(name: str) -> None:
    module = grolang.compile(grolang.load(name))
    hidden, weight, targets = inputs()
    bias = torch.randn(V, dtype=torch.float64).requires_grad_()
    options: dict[str, Any] = {"bias": bias, "scale": 0.7, "softcap": 5.0, "temperature": 1.3}

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, batch: grolang.Batch) -> Tensor:
        return 2 * module(hidden * 1.5, weight, targets, batch, **options)

    want = loss(hidden, weight, targets, batch_of())
    compiled: Any = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = compiled(hidden, weight, targets, batch_of())
    torch.testing.assert_close(found, want)
    parts = (hidden, weight, bias)
    for one, other in zip(torch.autograd.grad(found, parts), torch.autograd.grad(want, parts), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden, weight, targets, batch_of()), want.detach())


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, D, dtype=dtype)
        self.layer = nn.Linear(D, D, dtype=dtype)
        self.loss = grolang.compile(grolang.load("simpo"))

    def forward(self, ids: Tensor, targets: Tensor, batch: grolang.Batch) -> Tensor:
        states = torch.tanh(self.layer(self.embedding(ids)))
        return torch.as_tensor(self.loss(states, self.embedding.weight, targets, batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_its_loss_is_one_graph(dtype: torch.dtype) -> None:
    """Tied embeddings: the head's gradient and the embedding's add up."""
    model = Model(dtype)
    ids = torch.arange(S * T).view(S, T) % V
    grads = []
    for step in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        step(ids, ids.roll(1, 1), batch_of(torch.float32)).backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(grads[0]) == 3
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_operator_keeps_what_torch_asks_of_one() -> None:
    """Schema, shapes without data and autograd agree, as torch checks them."""
    module = grolang.compile(grolang.load("dpo"))
    hidden, weight, targets = inputs()
    batch = batch_of()
    assert batch.label is not None and batch.group is not None and batch.logp_ref is not None
    tensors = [batch.mask, batch.group, batch.label, batch.logp_ref]
    torch.library.opcheck(
        torch.ops.grolang.loss.default,
        (hidden, targets, weight, None, 1.0, None, 1.0, tensors, "mask,group,label,logp_ref", [True, True, False])
        + (module._number,),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_the_module_outlives_it(again: Any) -> None:
    hidden, weight, targets = inputs()
    copied = again(grolang.compile(grolang.load("dpo")))
    whole: Any = torch.compile(copied, fullgraph=True, backend="eager")
    expected = grolang.compile(grolang.load("dpo"))(hidden, weight, targets, batch_of())
    torch.testing.assert_close(whole(hidden, weight, targets, batch_of()), expected)


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no word for it")
def test_a_cuda_graph_leaves_the_operator_out() -> None:
    import_module("grolang.compiler.operator")  # which registers it, when a module is compiled first
    assert torch.Tag.cudagraph_unsafe in torch.ops.grolang.loss.default.tags
