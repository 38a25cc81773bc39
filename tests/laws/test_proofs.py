"""What the prover calls equal is equal: random pairs of expressions, also near the edges of clips."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

import grolang
import grolang.testing
from grolang.compiler.execute import Run
from grolang.compiler.lowering import Lowering
from grolang.compiler.method import from_source
from grolang.compiler.program import Program
from grolang.language.scopes import Scope
from grolang.language.source import Source
from grolang.laws.proof import proved_equal

HEAD = {
    "preference": "method m\ndata preference\nparam k = 0.5\nreward = label\n",
    "prompts": "method m\ndata prompts\nparam k = 0.5\nscore r\nreward = r\n",
}
TOKEN = ("logp", "logp_ref", "logp_old", "position")
SEQUENCE = {"preference": ("label", "length"), "prompts": ("r", "length", "group_size")}
EDGES = ("-0.125", "-1e-6", "0", "0.25", "1", "2", "k")


@dataclass
class Draw:
    """Random expressions as text, and rewritings of them that are equal, or nearly so."""

    random: random.Random
    data: str

    def expression(self, depth: int, token: bool = True) -> str:
        pick = self.random.choice
        if depth == 0 or self.random.random() < 0.15:
            return pick((*TOKEN, *EDGES) if token else (*SEQUENCE[self.data], *EDGES))
        shape = self.random.randrange(9)
        inner = self.expression(depth - 1, token)
        if shape < 4:
            return f"({inner} {pick('+-**/')} {self.expression(depth - 1, token)})"
        if shape == 4:
            return f"{pick(('exp', 'sigmoid', 'tanh', 'abs', 'relu', 'logsigmoid'))}(0.1 * {inner})"
        if shape == 5:
            return f"clip({inner}, {pick(EDGES[:3])}, {pick(EDGES[3:])})"
        if shape == 6:
            condition, otherwise = self.expression(depth - 1, token), self.expression(depth - 1, token)
            return f"({inner} if {condition} > {pick(EDGES)} else {otherwise})"
        if token:
            return f"({pick(('sum', 'mean', 'std', 'max'))}(({inner} + logp) over tokens) + {pick(TOKEN)})"
        if self.data == "preference":
            return f"{pick(('opposite', 'chosen', 'rejected'))}({self.sequence(depth - 1)})"
        own = "own(r) * " if self.random.random() < 0.3 else ""
        axis = "others" if own else pick(("group", "others"))
        return f"{pick(('sum', 'mean', 'std'))}({own}{self.sequence(depth - 1)} over {axis})"

    def sequence(self, depth: int) -> str:
        return (
            f"(sum((logp_ref + {self.expression(depth, True)}) over tokens) + {self.expression(depth, False)} + length)"
        )

    def rewritten(self, text: str) -> str:
        """The same in other words, most of the time: some rewritings are only nearly right, as people's are."""
        swaps = (
            ("label", "-opposite(label)"),
            (" - ", " - 1 * "),
            ("mean(", "0 + mean("),
            ("relu(", "abs("),
            ("over others", "over group"),
            ("over group", "over batch"),
            ("own(r)", "r"),
            ("-1e-6", "-2e-6"),
            ("chosen(", "rejected("),
            (" + ", " - -1 * "),
        )
        old, new = self.random.choice([pair for pair in swaps if pair[1] != "over group" or "own(" not in text])
        return text.replace(old, new, 1)


def values(text: str, other: str, data: str) -> tuple[Program, grolang.Method]:
    """Both expressions as outputs of one program, at token scope."""
    method = from_source(Source("m.gro", f"{HEAD[data]}report a = {text}\nreport b = {other}\n"))
    low = Lowering(method.ir)
    places = {
        name: low.builder.spread(low.expression(method.ir.reports[report].body), Scope.TOKEN)
        for name, report in (("left", "a"), ("right", "b"))
    }
    return Program(tuple(low.builder.steps), places), method


def tried(seeds: range) -> tuple[int, int]:
    """Pairs that were proved equal, and pairs in all; each proved one is held against numbers."""
    proofs = 0
    for seed in seeds:
        data = ("preference", "prompts")[seed % 2]
        draw = Draw(random.Random(seed), data)
        text = draw.sequence(2) if seed % 3 else draw.expression(3)
        program, method = values(text, draw.rewritten(text), data)
        if not proved_equal(program):
            continue
        proofs += 1
        for batch in batches(method, seed):
            left, right = Run(program, batch, "m")("left", "right")
            assert torch.allclose(left, right, rtol=1e-7, atol=1e-7, equal_nan=True), (seed, text, left, right)
    return proofs, len(seeds)


def batches(method: grolang.Method, seed: int) -> list[grolang.Batch]:
    """A few batches, log-probs also on the edges that the expressions clip at."""
    found = []
    for number in range(3):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, True, False]])
        edges = torch.tensor([-0.125, -1e-6, -0.125 - 1e-9, -2.0, -7.0, -0.5], dtype=torch.float64)
        logps = [edges[torch.randint(0, 6, (4, 3), generator=generator)] for _ in range(3)]
        scores = {"r": torch.randint(-4, 5, (4,), generator=generator).double() / 4}
        label = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
        group = torch.tensor([0, 0, 1, 1])
        logp, old, reference = logps
        found.append(
            grolang.Batch(mask, group, logp=logp, logp_old=old, logp_ref=reference, label=label, scores=scores)
        )
    return found


def test_what_is_proved_equal_is_equal_in_numbers() -> None:
    proofs, pairs = tried(range(400))
    assert proofs > pairs // 3  # the prover does prove things


@pytest.mark.slow
def test_what_is_proved_equal_is_equal_in_numbers_on_thousands() -> None:
    tried(range(400, 4400))


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        ("preference", "opposite(opposite(length))", "length"),
        ("preference", "label * label", "1"),
        ("preference", "chosen(length) - rejected(length)", "label * (length - opposite(length))"),
        ("preference", "sum(logp - logp_ref over tokens)", "sum(logp over tokens) - sum(logp_ref over tokens)"),
        ("prompts", "r - mean(r over others)", "(r - mean(r over group)) * group_size / (group_size - 1)"),
        ("prompts", "std(r + group_size over group)", "std(r over group)"),
        ("prompts", "sigmoid(r)", "1 - sigmoid(-r)"),
        ("prompts", "sum(terminal(r) over tokens)", "r"),
        ("prompts", "mean(own(r) * length over others)", "r * mean(length over others)"),
        ("prompts", "sum(own(r) over others)", "r * (group_size - 1)"),
        ("prompts", "mean(length * r over group)", "sum(length * r over group) / group_size"),
        ("prompts", "max(r / length + r / (2 * length), 0)", "max(3 * r / (2 * length), 0)"),
        ("prompts", "r / std(r over group) > 0", "r / std(-r + 2 * r over group) > 0"),
        ("preference", "1 if length / label > 1 else 0", "1 if label * length > 1 else 0"),
        ("preference", "5 if label > 0 else length / (1 - label)", "5 * (1 + label) / 2 + length * (1 - label) / 4"),
        ("prompts", "(2 * r + r) / logp > 1", "3 * r / logp > 1"),
    ],
)
def test_an_identity_is_proved(data: str, left: str, right: str) -> None:
    assert proved_equal(values(left, right, data)[0])


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        ("prompts", "sum(r over group)", "sum(r over batch)"),
        ("prompts", "r * sum(logp over group)", "r * sum(logp over tokens)"),
        ("prompts", "r * sum(logp over group)", "r * sum(logp over batch)"),
        ("prompts", "sum(logp over others)", "0 * r"),
        ("preference", "opposite(length)", "length"),
        ("preference", "chosen(length)", "rejected(length)"),
        ("preference", "label", "opposite(label)"),
        ("prompts", "mean(r over group)", "mean(r over others)"),
        ("prompts", "mean(r over group)", "mean(r over batch)"),
        ("prompts", "mean(logp over group)", "mean(mean(logp over tokens) over group)"),
        ("prompts", "std(r over group)", "sample_std(r over group)"),
        ("prompts", "max(r over group)", "max(r over others)"),
        ("prompts", "sum(r * r over group)", "sum(r over group) * r"),
        ("prompts", "clip(r, 0, 1)", "min(r, 1)"),
        ("prompts", "min(r, 1)", "max(r, 1)"),
        ("prompts", "max(r + group_size over group)", "max(r over group)"),
        ("prompts", "mean(own(r) > r over others)", "mean(own(r) < r over others)"),
        ("prompts", "mean(own(r) * r over others)", "mean(r * r over others)"),
        ("prompts", "sum(logp over tokens)", "length * logp"),
        # What cancels has no value where its divisor is 0, and a condition hides that.
        ("prompts", "r / r == 1", "length / length == 1"),
        ("prompts", "1 if r / r == 1 else 0", "1"),
        ("prompts", "r if r * logp / r < 0 else 0", "r if logp < 0 else 0"),
        ("prompts", "mean(r / r over group) == 1", "mean(r / r over batch) == 1"),
        ("prompts", "sum(own(r) / own(r) == 1 over others)", "sum(r / r == 1 over others)"),
        ("preference", "opposite(length - 1) / opposite(length - 1) == 1", "(length - 1) / (length - 1) == 1"),
        (
            "preference",
            "chosen(length - 1) / chosen(length - 1) == 1",
            "rejected(length - 1) / rejected(length - 1) == 1",
        ),
        ("prompts", "tanh(1 / (r - length))", "-tanh(1 / (length - r))"),
        ("prompts", "r < 2 * log(r) - log(r) / 2 - log(r) * 1.5 + 1", "r < 1"),
        # What is not taken may be undefined.
        (
            "preference",
            "1 if ((length - 1) / (length - 1) if label > 0 else 1) == 1 else 0",
            "1 if (1 if label > 0 else (length - 1) / (length - 1)) == 1 else 0",
        ),
        ("prompts", "1 if terminal(r / r) == 0 else 0", "1 if terminal(1) * (r / r) == 0 else 0"),
        ("prompts", "1 if (r > 1 and r / r) == 0 else 0", "1 if (r > 1) * (r / r) == 0 else 0"),
        ("preference", "5 if label > 0 else length / (1 - label)", "5 * (1 + label) / 2 + length / 2"),
        # Infinite is not undefined, and has a sign.
        ("prompts", "1 if 1 / r > 0 else 0", "1 if 2 / r - 1 / r > 0 else 0"),
        ("prompts", "1 if 1 / (r - length) > 0 else 0", "1 if 1 / -(length - r) > 0 else 0"),
    ],
)
def test_what_is_not_equal_is_not_proved(data: str, left: str, right: str) -> None:
    assert not proved_equal(values(left, right, data)[0])


def test_a_power_of_too_many_terms_is_not_written_out() -> None:
    """(a + b + c) ^ 1000 has half a million terms: the question is answered all the same."""
    power = "(logp + logp_ref + r) ^ 1000"
    assert proved_equal(values(power, power.replace("logp + logp_ref", "logp_ref + logp"), "prompts")[0])
    assert not proved_equal(values(power, f"{power} * 1.5", "prompts")[0])
    assert proved_equal(
        values("(logp + r) ^ 20", "(logp + r) ^ 10 * (logp ^ 2 + 2 * logp * r + r ^ 2) ^ 5", "prompts")[0]
    )
