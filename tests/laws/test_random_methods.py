"""Unseen programs: random methods give the coefficients that the page says, by a reader that shares no code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grolang
from grolang.compiler import derivative, execute, lowering
from grolang.compiler.layout import Layout
from grolang.compiler.program import Builder
from grolang.language.ir import MethodIR
from grolang.language.scopes import Scope

from .programs import GROUPED, Drawn, Program, batch, draw, expected, nudged, tensors

FAST, SLOW = 360, 6000
RTOL = 1e-9
START = int(os.environ.get("GRO_SEED", "0"))
SEED = st.integers(0, 2**31)


class IllDefined(Exception):
    """The program's numbers are infinite, or jump within rounding: nothing to compare."""


def ill_defined(program: Program, drawn: Drawn, size: float) -> bool:
    """Whether rounding alone moves the oracle's numbers: a near tie, a kink, a cancellation."""
    here = expected(program, drawn).coefficients
    for seed in range(3):
        there = expected(program, nudged(drawn, size, seed)).coefficients
        if not np.allclose(here, there, rtol=1e-9, atol=1e3 * size * max(1.0, np.abs(here).max()) + 1e-12):
            return True
    return False


def compare(program: Program, drawn: Drawn, folder: Path) -> None:
    """Assert that grolang's coefficients, loss gradient and reports are the oracle's."""
    method = program.load(folder)
    want = expected(program, drawn)
    given = tensors(program, drawn)
    if not np.isfinite(want.coefficients).all():
        raise IllDefined
    scale = max(1.0, float(np.abs(want.coefficients).max()))
    if scale > 1e8:
        raise IllDefined
    where = f"seed {program.seed}\n{program.text}\n{program.settings}"
    try:
        got = method.coefficients(given).numpy()
    except grolang.GroError as error:  # where the oracle has numbers, an error is a wrong answer like any other
        got, where = np.full_like(want.coefficients, np.nan), f"{where}\n{error}"
    close = np.allclose(got, want.coefficients, rtol=RTOL, atol=1e-11 * scale)
    if not close and ill_defined(program, drawn, 1e-13):
        raise IllDefined
    assert close, f"{where}\n{np.abs(got - want.coefficients).max()}\nfound\n{got}\nexpected\n{want.coefficients}"
    assert (got[~drawn.mask] == 0).all(), where
    if program.reports:
        found = method.evaluate(given).reports
        for name, number in want.reports.items():
            near = np.isclose(found[name], number, rtol=1e-8, atol=1e-10, equal_nan=True)
            assert near or not np.isfinite(number), f"{where}\nreport {name}: found {found[name]}, expected {number}"


def run(seeds: range, folder: Path) -> tuple[int, int]:
    """Compare the programs of these seeds; (compared, ill-defined)."""
    skipped = 0
    for seed in seeds:
        program = draw(seed)
        try:
            compare(program, batch(program), folder)
        except IllDefined:
            skipped += 1
    return len(seeds) - skipped, skipped


@pytest.mark.parametrize("part", range(8))
def test_random_methods_have_the_coefficients_that_the_page_says(part: int, tmp_path: Path) -> None:
    size = FAST // 8
    compared, skipped = run(range(START + part * size, START + (part + 1) * size), tmp_path)
    assert skipped <= 0.1 * (compared + skipped), "too many programs say nothing: tame the generator"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))
def test_thousands_of_random_methods_have_the_coefficients_that_the_page_says(part: int, tmp_path: Path) -> None:
    size = SLOW // 40
    compared, skipped = run(range(100_000 + part * size, 100_000 + (part + 1) * size), tmp_path)
    assert skipped <= 0.1 * (compared + skipped), "too many programs say nothing: tame the generator"


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(seed=SEED)
def test_any_random_method_has_the_coefficients_that_the_page_says(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run(range(seed, seed + 1), tmp_path_factory.mktemp("drawn"))


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(seed=SEED)
def test_a_coefficient_moves_only_with_the_log_probs_of_its_own_scope(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`needs.scope` is the finest scope of LANGUAGE.md, 8: log-probs beyond it change nothing."""
    program = draw(seed)
    drawn = batch(program)
    method = program.load(tmp_path_factory.mktemp("drawn"))
    given_batch = tensors(program, drawn)
    assert given_batch.logp is not None and given_batch.entropy is not None
    before = method.coefficients(given_batch)
    rows = np.flatnonzero(drawn.mask.any(1))
    row = rows[drawn.rng.integers(len(rows))]
    slot = drawn.rng.choice(np.flatnonzero(drawn.mask[row]))
    logp, entropy = given_batch.logp.clone(), given_batch.entropy.clone()
    logp[row, slot] -= 0.37
    entropy[row, slot] += 0.21
    changed = (method.coefficients(given_batch.replace(logp=logp, entropy=entropy)) != before).numpy()
    allowed = np.zeros_like(changed)
    scope = method.needs.scope
    if scope == "token":
        allowed[row, slot] = True
    elif scope == "sequence":
        allowed[row] = True
    elif scope == "group":
        allowed[drawn.group == drawn.group[row]] = True
    elif scope == "batch":
        allowed[:] = True
    assert scope != "group" or program.kind in GROUPED
    assert not (changed & ~allowed).any(), f"scope {scope}, token ({row}, {slot})\n{program.text}"


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(seed=SEED)
def test_the_gradient_of_a_random_methods_loss_is_minus_its_coefficients(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = draw(seed)
    method = program.load(tmp_path_factory.mktemp("drawn"))
    given_batch = tensors(program, batch(program))
    assert given_batch.logp is not None
    logp = given_batch.logp.clone().requires_grad_()
    torch.autograd.backward(method.loss(given_batch.replace(logp=logp)))
    assert logp.grad is not None
    torch.testing.assert_close(-logp.grad, method.coefficients(given_batch), rtol=1e-12, atol=0)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(seed=SEED)
def test_a_method_runs_on_nothing_but_what_it_says_it_needs(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`needs` is what the loop supplies: coefficients, loss and reports must not ask for more."""
    program = draw(seed)
    method = program.load(tmp_path_factory.mktemp("drawn"))
    given_batch, needs = tensors(program, batch(program)), method.needs
    whole = method.evaluate(given_batch)
    bare = given_batch.replace(
        logp_ref=given_batch.logp_ref if needs.reference else None,
        entropy=given_batch.entropy if needs.entropy else None,
        logp_old=given_batch.logp_old if needs.old else None,
        logp_sampler=given_batch.logp_sampler if needs.sampler else None,
        mismatched=given_batch.mismatched if needs.mismatched else None,
        greedy_scores=given_batch.greedy_scores if needs.greedy else {},
        scores={name: given_batch.scores[name] for name in needs.scores},
    )
    try:
        torch.testing.assert_close(method.coefficients(bare), whole.coefficients, rtol=0, atol=0)
        torch.testing.assert_close(method.loss(bare).detach(), whole.loss.detach(), rtol=0, atol=0, equal_nan=True)
    except Exception as error:
        raise AssertionError(f"{needs}\n{program.text}") from error


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(seed=SEED)
def test_a_random_methods_ir_survives_json(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    ir = draw(seed).load(tmp_path_factory.mktemp("drawn")).ir
    assert MethodIR.model_validate_json(ir.model_dump_json()) == ir


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """The oracle of another program is not met: of 20 programs with one coefficient nudged, all are caught."""
    caught = 0
    for seed in range(20):
        program = draw(seed)
        drawn = batch(program)
        want = expected(program, drawn).coefficients
        found = program.load(tmp_path).coefficients(tensors(program, drawn)).numpy()
        scale = max(1.0, float(np.abs(want).max()))
        caught += not np.allclose(found + 1e-7 * scale * drawn.mask, want, rtol=RTOL, atol=1e-11 * scale)
    assert caught == 20


def words(program: Program) -> set[str]:
    """What a program's trees use: functions, signs, names, and reductions by axis and scope."""
    used = {program.kind, *(f"{step.op} over {step.axis}" for step in program.steps)}
    stack = [*program.definitions.values(), program.omega, program.upsilon, *program.reports.values()]
    while stack:
        node = stack.pop()
        stack += node.args
        used |= set(node.name.split()) if node.kind in ("compare", "binary", "call", "form", "leaf") else {node.kind}
        if node.kind == "reduce":
            used.add(f"{node.name}({node.args[0].scope} over {node.axis})")
    return (
        used
        | {f"penalty of {program.definitions['penalty'].scope}"}
        | ({"extends"} if len(program.files) > 1 else set())
    )


def test_the_fast_suite_uses_every_word_of_the_language() -> None:
    used: set[str] = set()
    for seed in range(FAST):
        used |= words(draw(seed))
    axes = {
        "tokens": ["token"],
        "group": ["sequence", "token"],
        "others": ["sequence", "token", "comparison"],
        "batch": ["group", "sequence", "token"],
    }
    wanted = {
        f"{name}({scope} over {axis})"
        for name in ["sum", "mean", "std", "sample_std", "max", "min", "quantile"]
        for axis, scopes in axes.items()
        for scope in scopes
    }
    wanted |= {
        "exp",
        "log",
        "log1p",
        "expm1",
        "sqrt",
        "abs",
        "sign",
        "sigmoid",
        "logsigmoid",
        "softplus",
        "tanh",
        "relu",
        "min",
        "max",
        "clip",
    }
    wanted |= {"opposite", "chosen", "rejected", "greedy", "mismatched", "terminal", "to_go", "sg", "own"}
    wanted |= {"logp", "logp_old", "logp_sampler", "logp_ref", "entropy", "position", "length", "group_size", "label"}
    wanted |= {
        "demonstration",
        "correct",
        "style",
        "inf",
        "+",
        "-",
        "*",
        "/",
        "^",
        "<",
        "<=",
        ">",
        ">=",
        "==",
        "!=",
        "and",
        "or",
        "not",
        "if",
        "extends",
    }
    wanted |= {
        f"{op} over {axis}" for op in ("sum", "mean") for axis in ("tokens", "sequences", "group", "groups", "batch")
    }
    wanted |= {f"penalty of {scope}" for scope in ("token", "sequence", "group", "batch")}
    assert not wanted - used, sorted(wanted - used)


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "std divides by N - 1": lambda patch: patch.setattr(
        execute,
        "reduced",
        lambda f, *rest, _was=execute.reduced: _was({"std": "sample_std"}.get(f, f), *rest),
    ),
    "others include the sequence itself": lambda patch: patch.setattr(
        Layout, "_others", lambda self, child: _with_itself(self, child)
    ),
    "a comparison is turned round": lambda patch: patch.setattr(
        Layout, "swapped", property(lambda self: torch.arange(self.size(Scope.COMPARISON)))
    ),
    "softplus loses its sign": lambda patch: patch.setitem(
        execute.ELEMENTWISE, "softplus", torch.nn.functional.logsigmoid
    ),
    "a penalty's gradient has the wrong sign": lambda patch: patch.setattr(
        lowering, "gradient", lambda build, *rest, _was=derivative.gradient: build.apply("negate", _was(build, *rest))
    ),
    "sg stops nothing": lambda patch: patch.setattr(
        Builder,
        "emit",
        lambda self, op, args=(), *rest, _was=Builder.emit, **more: (
            args[0] if op == "stop" else _was(self, op, args, *rest, **more)
        ),
    ),
    "position counts slots": lambda patch: patch.setattr(Layout, "position", property(lambda self: self.places[1])),
    "reward to go is not discounted": lambda patch: patch.setattr(
        execute,
        "discounted",
        lambda x, g, *rest, _was=execute.discounted, **more: _was(x, torch.ones_like(g), *rest, **more),
    ),
}


def _with_itself(layout: Layout, child: Scope) -> tuple[torch.Tensor, torch.Tensor]:
    index, there = layout.children(child, Scope.GROUP)
    return index[layout.groups[1]], there[layout.groups[1]]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_compiler_does_not_pass(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison kills mutants: within the fast suite's programs, one at least tells them from the page."""
    MUTANTS[mutant](monkeypatch)
    with pytest.raises(AssertionError, match="seed"):
        run(range(START, START + FAST), tmp_path)
