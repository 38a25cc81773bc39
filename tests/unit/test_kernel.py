"""Triton's kernels under its interpreter, against the torch path and float64. None has run on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.execute import ELEMENTWISE, Run
from grolang.compiler.forming import Forming
from grolang.compiler.fused import Gradients, Head, factored_pass, head, launch, logps, recompute, single_pass, sweep
from grolang.compiler.fused.head import logits
from grolang.compiler.fused.launch import RowKernel
from grolang.compiler.fused.products import Precision, multiply
from grolang.compiler.kernel import EXPRESSIONS, PLAIN, Kernel, kernel
from grolang.language import library
from grolang.language.scopes import Scope
from tests.laws import programs
from tests.unit.test_fused import BUDGETS, HEADS, UNIT, Case, assert_gradients, assert_near, case, plain

EVERY = [grolang.load(name) for name in sorted(library.built_in())]
METHODS = [one.name for one in EVERY if one.schedule.unit is Scope.TOKEN]
FACTORED = [one.name for one in EVERY if one.schedule.kind == "factored"]
V = 37


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "BLOCK", 32)
    monkeypatch.setattr(launch, "TILES", {2: (16, 16, 32), 4: (16, 16, 16)})
    monkeypatch.setattr(launch, "PROGRAMS", 4)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are taken for CUDA's, where Triton's interpreter is there to run them."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton runs on CPU tensors with TRITON_INTERPRET=1 alone")
    monkeypatch.setattr(launch, "usable", lambda *_: True)
    monkeypatch.setattr(launch, "OPERANDS", (torch.float16,))  # the interpreter's dot takes bf16 for integers


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of bf16 operands with fp32 results that CUDA has, so that errors are written in bf16."""

    def widening(
        out: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, beta: float = 0.0, rounded: bool = False
    ) -> Tensor:
        return multiply(out, a.to(out.dtype), b.to(out.dtype), alpha=alpha, beta=beta)

    for module in (head, sweep, recompute):
        monkeypatch.setattr(module, "multiply", widening)
    monkeypatch.setattr(sweep, "precision", lambda *_: Precision(torch.float32, torch.bfloat16))
    monkeypatch.setattr(sweep, "rounds", lambda _: False)


def test_every_function_but_power_has_an_expression() -> None:
    assert set(ELEMENTWISE) - set(EXPRESSIONS) == {"power"}


@pytest.mark.parametrize("name", METHODS)
def test_a_kernel_is_written_from_the_methods_own_steps(name: str) -> None:
    found = kernel(grolang.load(name).program, "coefficient")
    assert found is not None
    compile(found.text, name, "exec")


@pytest.mark.parametrize("name", FACTORED)
def test_the_weights_of_a_method_that_factors_are_known_to_its_kernel(name: str) -> None:
    found = kernel(grolang.load(name).schedule.program, "weight")
    assert found is not None and "logp *" not in found.text
    compile(found.text, name, "exec")


def test_a_coefficient_that_needs_other_rows_has_no_kernel() -> None:
    for name in ("dpo", "gspo"):
        assert kernel(grolang.load(name).program, "coefficient") is None


# --- rows ---------------------------------------------------------------------------------------------------


def launched(found: Kernel, known: list[Tensor], one: Case) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(errors, (logp, lse, entropy, c)) of the kernel on CPU tensors."""
    tile = one.hidden.detach().float() @ one.head.weight.detach().float().T
    rows, c = RowKernel(found.text, known)(slice(0, len(tile)), one.head, tile, tile, one.targets)
    assert rows.entropy is not None
    return tile, (rows.logp, rows.lse, rows.entropy, c)


def same_as_torch(method: grolang.Method, batch: grolang.Batch, kind: str = "plain") -> bool:
    found = kernel(method.program, "coefficient")
    if found is None:
        return False
    one = case(kind, torch.float32, rows=int(batch.mask.sum()))
    one = replace(one, hidden=one.hidden.detach().div(8).requires_grad_())
    logp, entropy, _ = plain(one)
    zero = torch.zeros(batch.mask.shape, dtype=torch.float64)
    full = batch.replace(logp=zero.masked_scatter(batch.mask, logp), entropy=zero.masked_scatter(batch.mask, entropy))
    run = Run(method.program, full, method.name)
    (want,) = run("coefficient")
    if not bool(want.isfinite().all()) or float(want.abs().max()) > 1e6:
        return False
    known = [run.at_tokens(index) for index in found.known]
    _, (found_logp, _, found_entropy, c) = launched(found, known, one)
    torch.testing.assert_close(found_logp, logp.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_entropy, entropy.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(c, want.float(), rtol=2e-4, atol=2e-5 * max(1.0, float(want.abs().max())))
    return True


@pytest.mark.parametrize("name", METHODS)
def test_the_kernel_of_a_built_in_method_gives_what_torch_gives(name: str, on_gpu: None) -> None:
    assert same_as_torch(grolang.load(name), batch_of(grolang.load(name)))


def batch_of(method: grolang.Method) -> grolang.Batch:
    """Two pairs of completions with a masked token; the second pair's rewards are equal."""
    make = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)

    def logp() -> Tensor:
        return -3 * torch.rand(4, 3, generator=make).double()

    scores = {key: torch.rand(4, generator=make).double() for key in method.scores}
    scores = {key: torch.cat([one[:2], one[2:3].expand(2)]) for key, one in scores.items()}
    return grolang.Batch(
        mask=mask,
        group=torch.tensor([0, 0, 1, 1]),
        label=torch.tensor([1.0, -1, 1, -1]).double(),
        demonstration=torch.tensor([1.0, 0, 1, 0]).double(),
        logp_old=logp(),
        logp_ref=logp(),
        logp_sampler=logp(),
        scores=scores,
        greedy_scores={key: 0.5 * one for key, one in scores.items()},
        mismatched=grolang.Batch(mask=mask.roll(1, 0), logp=logp(), logp_ref=logp()),
    )


def test_the_kernels_of_random_methods_give_what_torch_gives(tmp_path: Path, on_gpu: None) -> None:
    compared = 0
    for seed in range(95_000, 95_040):
        program = programs.draw(seed)
        method = program.load(tmp_path)
        batch = programs.tensors(program, programs.batch(program))
        if method.schedule.kind == "token" and int(batch.mask.sum()) <= 16:
            compared += same_as_torch(method, batch, list(HEADS)[seed % 3])
    assert compared


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_a_row_kernel_writes_errors_and_leaves_rows_without_coefficient(kind: str, bias: bool, on_gpu: None) -> None:
    one = case(kind, torch.float32, bias=bias)
    weigh = kernel(grolang.load("sft").program, "coefficient")
    assert weigh is not None and len(weigh.known) == 1
    products = one.hidden.detach() @ one.head.weight.detach().T
    tile, (logp, lse, entropy, c) = launched(weigh, [one.c], one)
    want, spread, _ = plain(one)
    assert_near(logp, want, 5e-6)
    assert_near(entropy, spread, 5e-6)
    assert_near(lse, logits(one.head, one.hidden.detach(), torch.empty(len(c), V)).logsumexp(1), 5e-6)
    assert torch.equal(c, one.c.float())
    assert torch.equal(tile[c == 0], products[c == 0])
    gain = one.head.gain
    for row in c.nonzero()[:, 0].tolist():
        alone = replace(one, hidden=one.hidden[row : row + 1].detach(), targets=one.targets[row : row + 1])
        by_autograd = plain(replace(alone, c=torch.ones(1), hidden=alone.hidden.requires_grad_()))[2].hidden
        assert_near(gain * tile[row : row + 1] @ one.head.weight.detach(), by_autograd, 2e-5)


def test_tiny_and_masked_probabilities_stay_exact(on_gpu: None) -> None:
    """Log-probs of −60 and −200, logits of ±1e4, a whole block of −∞, and a target that no head has."""
    weight = torch.zeros(V, 8)
    weight[20:24, 0] = torch.tensor([1.0, -1.0, 0.0, -0.5])
    hidden = torch.zeros(5, 8)
    hidden[:, 0] = torch.tensor([1e4, -1e4, 60.0, 200.0, 1.0])
    bias = torch.zeros(V)
    bias[:16] = -torch.inf
    targets = torch.tensor([20, 20, 22, 22, 20])
    one = Case(hidden, Head(weight, bias), targets, torch.ones(5))
    leaves = Head(weight.clone().requires_grad_(), bias.clone().requires_grad_())
    logp, _, want = plain(replace(one, hidden=hidden.clone().requires_grad_(), head=leaves))
    p = (hidden.double() @ weight.double().T + bias.double()).softmax(1)
    entropy = -torch.xlogy(p, p).sum(1)
    assert logp[1] < -1e4 and logp[2] < -59 and logp[3] < -199
    tile, (found, _, spread, _) = launched(PLAIN, [], one)
    whole = launch.reduced(hidden, one.head, targets)
    for a, b in ((found, spread), (whole.logp, whole.entropy)):
        assert_near(a, logp, 5e-6)
        assert_near(b, entropy, 5e-6)
    assert_near(tile @ weight, want.hidden, 5e-6)
    beyond = one.targets + 100
    assert launched(PLAIN, [], replace(one, targets=beyond))[1][0].isnan().all()
    assert launch.reduced(hidden, one.head, beyond).logp.isnan().all()


def test_functions_keep_their_digits_near_0(on_gpu: None) -> None:
    x = torch.tensor([1e-7, -3e-5, 9e-4, 1.1e-3, -0.02, 0.19, -0.21, 0.9, -1.5, 30.0, -30.0, 0.0])
    for name in ("expm1", "log1p", "tanh", "logsigmoid", "softplus"):
        values = x[x > -1] if name == "log1p" else x
        one = case(dtype=torch.float32, rows=len(values))
        text = PLAIN.text.replace("c_out\n", "c_out, known0\n").replace("c_out,\n", "c_out, known0,\n")
        text = text.replace(" + 1.0\n", f" + {EXPRESSIONS[name].format('tl.load(known0 + row)')}\n")
        _, (_, _, _, c) = launched(Kernel(text, (0,)), [values], one)
        torch.testing.assert_close(c.double(), ELEMENTWISE[name](values.double()), rtol=1e-6, atol=0)


# --- passes -------------------------------------------------------------------------------------------------


def by_single_pass(one: Case, budget: int) -> Gradients:
    c = one.c
    return single_pass(
        one.hidden, one.head, one.targets, lambda rows, *_: c[rows], kernel=RowKernel(PLAIN.text), budget=budget
    ).gradients


def by_units(one: Case, budget: int) -> Gradients:
    """c = s·w: the kernel knows w, s comes when the unit is complete."""
    return factored(one, budget, UNIT, None)


def by_parts(one: Case, budget: int) -> Gradients:
    return factored(one, budget, (UNIT > 2).long(), UNIT)


def factored(one: Case, budget: int, unit: Tensor, part: Tensor | None) -> Gradients:
    s = torch.tensor([2.0, 0, -1, 0.5, 0, 4, -3], dtype=torch.float64)[UNIT]
    found = kernel(grolang.load("sft").program, "coefficient")
    assert found is not None
    w = one.c / s
    known = RowKernel(found.text, [w])
    return factored_pass(
        one.hidden, one.head, one.targets, w, unit, lambda rows, *_: s[rows], part=part, budget=budget, kernel=known
    ).gradients


def by_recomputing(one: Case, budget: int) -> Gradients:
    return free(one, budget, 0)


def by_keeping_a_part(one: Case, budget: int) -> Gradients:
    return free(one, budget, 11 * V * one.hidden.dtype.itemsize)


def free(one: Case, budget: int, keep: int) -> Gradients:
    def c(rows: slice, *_: object) -> Tensor:
        return one.c[rows]

    unit = torch.zeros(len(one.c))
    plain_kernel = RowKernel(PLAIN.text)
    return factored_pass(
        one.hidden, one.head, one.targets, None, unit, c, budget=budget, keep=keep, kernel=plain_kernel
    ).gradients


WAYS = [by_single_pass, by_units, by_parts, by_recomputing, by_keeping_a_part]


@pytest.mark.parametrize(("budget", "kind"), [(BUDGETS[1], "plain"), (BUDGETS[1], "capped"), (BUDGETS[2], "scaled")])
@pytest.mark.parametrize("way", WAYS)
def test_every_pass_with_a_kernel_gives_the_gradients_of_plain_logits(
    way: Any, kind: str, budget: int, on_gpu: None
) -> None:
    one = case(kind, torch.float32)
    assert_gradients(way(one, budget), plain(one)[2], 5e-6)


@pytest.mark.parametrize("kind", ["scaled"])
@pytest.mark.parametrize("way", WAYS)
def test_errors_of_16_bits_are_operands(way: Any, kind: str, on_gpu: None, narrow: None) -> None:
    """As with bf16 inputs on CUDA: logits and sums in fp32, errors and c⊙H rounded once."""
    one = case(kind, torch.bfloat16)
    expected = plain(one)[2]
    assert_gradients(way(one, BUDGETS[1]), expected, 6e-3)
    frozen = replace(one, head=replace(one.head, weight=one.head.weight.detach(), bias=None))
    assert_near(way(frozen, BUDGETS[1]).hidden, plain(replace(one, head=replace(one.head, bias=None)))[2].hidden, 6e-3)


# --- log-probs without logits -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_products_are_reduced_where_they_are_formed(kind: str, bias: bool, dtype: torch.dtype, on_gpu: None) -> None:
    one = case(kind, dtype, bias=bias)
    logp, entropy, _ = plain(one)
    found, spread = logps(one.hidden, one.head, one.targets, entropy=True, kernels=True)
    assert found.dtype == torch.float32
    assert_near(found, logp, 5e-6)
    assert_near(spread, entropy, 5e-6)
    again, none = logps(one.hidden, one.head, one.targets, kernels=True)
    assert none is None and torch.equal(again, found)


@pytest.mark.parametrize(("rows", "depth", "words"), [(1, 1, 2), (16, 64, 16), (17, 70, 33), (33, 15, 150), (0, 8, 9)])
@pytest.mark.parametrize("programs_wanted", [1, 7])
def test_any_sizes_and_splits(
    rows: int, depth: int, words: int, programs_wanted: int, on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PROGRAMS", programs_wanted)
    make = torch.Generator().manual_seed(rows)
    hidden, weight = torch.randn(rows, depth, generator=make), torch.randn(depth, words, generator=make).T
    targets = torch.randint(words, (rows,), generator=make)
    for states, rest in ((hidden, weight), (hidden.bfloat16(), weight)):
        found, entropy = logps(states, Head(rest), targets, entropy=True, kernels=True)
        log_p = (states.double() @ rest.double().T).log_softmax(1)
        torch.testing.assert_close(found.double(), log_p.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5)
        assert entropy is not None
        torch.testing.assert_close(entropy.double(), -(log_p.exp() * log_p).sum(1), rtol=1e-5, atol=1e-5)


# --- the module ---------------------------------------------------------------------------------------------

#: methods of every schedule, and two whose coefficient a row cannot know
SCHEDULES = ["grpo", "dapo", "rloo", "sft", "cispo", "dpo", "kto", "gspo", "simpo", "orpo"]
OPTIONS: list[dict[str, Any]] = [{}, {"bias": True, "softcap": 3.0, "scale": 0.7, "temperature": 1.3}]
FREE = """method free
data prompts
score correct
reward = correct - 0.3
measure = mean(logp over tokens)
omega(z) = exp(z)
credit = max(entropy over tokens) * logp
"""


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", [*SCHEDULES, "free"])
def test_the_module_gives_the_same_with_kernels(
    name: str, options: dict[str, Any], on_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "free.gro").write_text(FREE)
    method = grolang.load(str(tmp_path / "free.gro") if name == "free" else name)
    assert (method.schedule.kind == "free") == (name == "free")
    batch, make = batch_of(method), torch.Generator().manual_seed(2)
    hidden = torch.randn(4, 3, 8, generator=make).requires_grad_()
    weight = torch.randn(V, 8, generator=make).requires_grad_()
    targets = torch.randint(V, (4, 3), generator=make)
    more = dict(options)
    inputs = [hidden, weight]
    if more.pop("bias", False):
        more["bias"] = torch.randn(V, generator=make).requires_grad_()
        inputs.append(more["bias"])
    for budget in (2 * V * 4,) if options else (2 * V * 4, 2**20):
        found = []
        for kernels in (False, True):
            monkeypatch.setattr(launch, "usable", lambda *_, kernels=kernels: kernels)
            module = grolang.compile(method, budget=budget, keep=3 * V * 4, kernels=True)
            loss = module(hidden, weight, targets, batch, **more)
            with torch.no_grad():
                quiet = module(hidden, weight, targets, batch, **more)
            found.append((loss.detach(), quiet, *torch.autograd.grad(loss, inputs)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "output"), [("grpo", "coefficient"), ("dpo", "weight"), ("free", None)])
def test_a_kernel_makes_what_its_schedule_knows(
    name: str, output: str | None, on_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "free.gro").write_text(FREE)
    method = grolang.load(str(tmp_path / "free.gro") if name == "free" else name)
    batch, make = batch_of(method), torch.Generator().manual_seed(2)
    seen, run = [], RowKernel.__call__

    def spied(*args: Any) -> Any:
        found = run(*args)
        seen.append(found[1])
        return found

    monkeypatch.setattr(RowKernel, "__call__", spied)
    forming = Forming(method, batch)
    count = len(forming.tokens)
    states, targets = torch.randn(count, 8, generator=make), torch.randint(V, (count,), generator=make)
    head = Head(torch.randn(V, 8, generator=make).requires_grad_())
    forming.form(forming.tokens, states, head, targets, kernels=True)
    made = torch.cat(seen)
    expected = torch.ones(count) if output is None else forming.run.per_token(output)[forming.tokens].float()
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-6)


# --- for a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_kernels_compile_for_gpus() -> None:
    """To machine code, by Triton's own compiler and ptxas, on a machine without a GPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "tests.gpu.machine_code"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rows of") == 12 and done.stdout.count("reduced") == 4
