"""What `lift` writes is the loss that it was asked for: the built-in losses, random ones, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import grolang
from grolang.cli import main
from grolang.compiler.method import from_source, load
from grolang.language import library
from grolang.language.checker import check
from grolang.language.components import COMPONENTS, FUNCTION_COMPONENTS
from grolang.language.difference import changes
from grolang.language.formatter import format_text
from grolang.language.source import Source
from grolang.laws.lift import Lifted, lift
from grolang.laws.question import of_method, of_text

FEW = 3  # batches on which a lift tries itself here: the tests have batches of their own


@cache
def lifted(name: str) -> Lifted:
    method = load(name)
    law = next(law for law in method.ir.laws.values() if law.claim == "loss")
    return lift(of_method(method.ir, law, method.sources), examples=FEW)


def source(found: Lifted) -> Source:
    return Source("lifted.gro", found.text)


def batch(seed: int, pairs: bool = True) -> grolang.Batch:
    """Three pairs (or six completions for two prompts) of up to four tokens, with holes, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def logps() -> Tensor:
        return -torch.rand(6, 4, generator=generator, dtype=torch.float64) * 2

    mask = torch.rand(6, 4, generator=generator) > 0.3
    mask[:, seed % 4] = True
    group = torch.tensor([0, 1, 2, 0, 1, 2] if pairs else [0, 0, 0, 1, 1, 1])
    label = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    score = torch.randint(-4, 5, (6,), generator=generator).double() / 4
    names = ("correct", "r")
    return grolang.Batch(
        mask=mask,
        group=group,
        label=label,
        demonstration=torch.ones(6, dtype=torch.float64),
        logp=logps(),
        logp_ref=logps(),
        logp_old=logps(),
        logp_sampler=logps(),
        entropy=-logps(),
        scores=dict.fromkeys(names, score),
        greedy_scores=dict.fromkeys(names, score.new_ones(6) * 0.5),
        mismatched=grolang.Batch(mask=mask.roll(1, 0), logp=logps(), logp_ref=logps(), logp_old=logps()),
    )


def same(left: grolang.Method, right: grolang.Method, seeds: int = 8) -> None:
    for seed in range(seeds):
        given = batch(seed, "preference" in left.data)
        torch.testing.assert_close(left.coefficients(given), right.coefficients(given), rtol=1e-9, atol=1e-12)


# --- built-in losses -----------------------------------------------------------------------------------------------

WITH_LOSS = [
    name
    for name in library.built_in()
    if any(law.claim == "loss" for law in check(library.built_in()[name]).unwrap().laws.values())
]
#: losses that have the form, whatever others are added
WITH_FORM = (
    *("dpo", "ipo", "simpo", "slic", "cpl", "kto", "orpo", "grpo", "ppo", "awr", "bco", "nca", "sppo", "exo", "rpo"),
    *("apo_down", "apo_zero", "marwil", "rloo", "dft", "vespo"),
)
#: lifting gives back the built-in file, statement by statement, but for what it reports
GIVEN_BACK = (
    *("dpo", "simpo", "cpl", "cdpo", "dpo_norm", "bco", "cispo", "dapo", "gspo", "grpo", "ppo", "reinforce"),
    *("reinforce_pp", "remax", "sft", "awr", "cpo"),
)


@pytest.mark.parametrize("name", WITH_LOSS)
def test_the_loss_of_a_built_in_method_lifts_to_that_method(name: str) -> None:
    found = lifted(name)
    assert found.verdict.good and (found.whole or all(row.why for row in found.left))
    checked = check(source(found))
    assert [row for row in checked.findings if row.severity == "error" or row.code == "W704"] == []
    assert format_text(found.text) == found.text
    same(from_source(source(found)), load(name))


@pytest.mark.parametrize("name", WITH_FORM)
def test_the_losses_of_the_field_have_the_form(name: str) -> None:
    assert lifted(name).whole


@pytest.mark.parametrize("name", GIVEN_BACK)
def test_an_author_would_have_written_the_same(name: str) -> None:
    allowed = {"penalty"} if name == "cpo" else set()
    parts = {*COMPONENTS, *FUNCTION_COMPONENTS, "aggregate", "data", "group"} - allowed
    meant = {"penalty = 0", "anchor = 0"}  # a default that a child says against its parent
    found = changes(library.built_in()[name], source(lifted(name)))
    wrong = [row for row in found if row.what in parts and not (row.right is None and row.left in meant)]
    assert wrong == [], wrong


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        ("orpo", "-chosen(mean_logp)"),
        ("slic", "-nll * chosen(measure)"),
        ("apo_down", "sigmoid(beta * chosen(measure))"),
        ("grpo", "beta * (exp(logp_ref - logp) - (logp_ref - logp) - 1)"),
    ],
)
def test_what_has_no_such_form_is_a_penalty_and_it_says_so(name: str, penalty: str) -> None:
    found = lifted(name)
    assert [row.text for row in found.left] == [penalty]
    assert f"penalty   = {penalty}" in found.text and f"# `{penalty[:49]}" in found.text
    assert "stays a penalty" in found.text and found.left[0].why in " ".join(
        found.text.replace("\n# ", " ").split("\n")
    )


# --- losses as text ------------------------------------------------------------------------------------------------

RATIO = "ratio = exp(logp - logp_old)"
PAIR = "m = sum(logp - logp_ref over tokens)"
BATCH = {"aggregate": "mean over batch"}


@pytest.mark.parametrize(
    ("loss", "options", "lines"),
    [
        (
            "-logsigmoid(beta * (chosen(m) - rejected(m)))",
            {"params": {"beta": "0.1"}, "lets": [PAIR]},
            ["reward = label", "measure = m", "anchor = opposite(m)", "alpha = beta * label"],
        ),
        (  # as TRL writes it: two differences of two
            "-logsigmoid(beta * ((chosen(pi) - rejected(pi)) - (chosen(ref) - rejected(ref))))",
            {
                "params": {"beta": "0.1"},
                "lets": ["pi = sum(logp over tokens)", "ref = sum(logp_ref over tokens)"],
            },
            ["measure = pi - ref", "anchor = opposite(measure)", "omega(z) = beta * sigmoid(-z)"],
        ),
        (  # as verl writes it: the larger of two losses
            "max(-A * ratio, -A * clip(ratio, 0.8, 1.2))",
            {"scores": ["r"], "lets": ["A = r - mean(r over group)", RATIO], "aggregate": "mean over batch"},
            [
                "reward = A",
                "anchor = logp_old",
                "omega(z) = 0 if (exp(z) > 1.2 if advantage > 0 else exp(z) < 0.8) else exp(z)",
            ],
        ),
        (  # the mean inside of the loss is the aggregation
            "-mean(min(ratio * r, clip(ratio, 0.8, 1.2) * r) over batch)",
            {"scores": ["r"], "lets": [RATIO]},
            ["reward = r", "aggregate = mean over batch"],
        ),
        (
            "-mean(sum(logp over tokens) * (r - mean(r over others)) over group)",
            {"scores": ["r"]},
            [
                "reward = r",
                "baseline = mean(r over others)",
                "aggregate = sum over tokens, mean over group, mean over groups",
            ],
        ),
        (  # a weight that moves with the policy, but is no part of its gradient
            "-sum(sg(min(exp(logp - logp_sampler), cap)) * r * logp over tokens)",
            {"scores": ["r"], "params": {"cap": "2"}},
            ["anchor = logp_sampler", "omega(z) = min(exp(z), cap)"],
        ),
        (
            "-logsigmoid(k * label * (sum(logp over tokens) - 1))",
            {"params": {"k": "2"}},
            ["data unpaired", "reward = label", "anchor = 1", "alpha = k * label", "omega(z) = k * sigmoid(-z)"],
        ),
        (
            "log(1 + exp(-label * (sum(logp over tokens) - opposite(sum(logp over tokens)))))",
            {},
            ["data preference", "anchor = opposite(measure)", "alpha = label", "omega(z) = 2 * sigmoid(-z)"],
        ),
        (
            "-log(exp(w) / (exp(w) + exp(l)))",
            {"lets": ["w = chosen(sum(logp over tokens))", "l = rejected(sum(logp over tokens))"]},
            ["anchor = opposite(measure)", "alpha = label", "omega(z) = sigmoid(-z)"],
        ),
        ("-sum(tanh(r / 2) * logp over tokens)", {"scores": ["r"]}, ["reward = r", "upsilon(a) = tanh(a / 2)"]),
        ("-sum(-tanh(r) * logp over tokens)", {"scores": ["r"]}, ["reward = -tanh(r)"]),  # a falling upsilon is none
        ("-0.1 * logp * (position < 3)", {"data": "demonstrations", "aggregate": "sum over batch"}, []),
        ("-logp / length", {"aggregate": "sum over tokens, mean over sequences"}, ["aggregate = mean over tokens"]),
        (
            "-chosen(sum(logp over tokens)) * 2",
            {"aggregate": "sum over tokens, sum over sequences"},
            [
                "reward = 2 if label > 0 else 0",
                "credit = group_size",
                "aggregate = sum over tokens, sum over sequences",
            ],
        ),
        (  # what the label decides is decided for each response
            "-logsigmoid(m) if label > 0 and length < 9 else -logsigmoid(-m)",
            {"lets": [PAIR], "data": "preference"},
            ["omega(z) = -(-sigmoid(-z) if length < 9 else sigmoid(z)) if label > 0 else sigmoid(z)"],
        ),
        (
            "-logp * (label / 3 if label > 0 and not length > 3 else 0)",
            {"data": "unpaired", "aggregate": "mean over batch"},
            ["reward = label / 3 if label > 0 and not length > 3 else 0"],
        ),
        ("-logp / 3", {"aggregate": "mean over batch"}, ["reward = 1 / 3"]),
        (
            "-logsigmoid(label * (sum(logp over tokens) - s / length))",
            {"scores": ["s"], "data": "unpaired"},
            ["measure = sum(logp over tokens)", "anchor = s / length", "alpha = label", "omega(z) = sigmoid(-z)"],
        ),
        ("-(chosen(m) + rejected(m))", {"lets": [PAIR]}, ["reward = 1", "aggregate = sum over tokens"]),
        (  # a sum by name is cut into its terms, and one may be called as a keyword is
            "loss - nll",
            {"lets": ["loss = logp ^ 2 - logp * s", "nll = logp * label"], "scores": ["s"], **BATCH},
            ["loss = logp ^ 2 - logp * s", "anchor = label / 2 + s / 2", "omega(z) = -2 * z"],
        ),
    ],
)
def test_a_typed_loss_lifts_to_what_an_author_would_write(
    loss: str, options: dict[str, object], lines: list[str]
) -> None:
    found = lift(of_text(loss, **options), examples=20)  # type: ignore[arg-type]
    assert found.verdict.good and found.whole, found
    plain = " ".join(found.text.split())
    assert [line for line in lines if line not in plain] == [], found.text


@pytest.mark.parametrize(
    ("loss", "options", "why"),
    [
        ("-logsigmoid(m - mean(m over group))", {"lets": [PAIR], "data": "prompts"}, "`mean(… over group)`"),
        ("max(logp over tokens)", {}, "`max(… over tokens)`"),
        ("sum(logp over tokens) * std(m over batch)", {"lets": [PAIR]}, "over batch"),
        ("-sum(min(exp(logp - logp_old), 2) * logp over tokens)", {}, "from two anchors"),
        ("(sum(logp over tokens) - r) ^ 2 * exp(-sum(position * logp over tokens))", {"scores": ["r"]}, "in two ways"),
        ("-exp(logp) * sum(logp over tokens) ^ 2", BATCH, "sums the log-probs of a completion in two ways"),
        ("sum(exp(logp - sum(logp over tokens)) over tokens)", {}, "a sum over tokens stands within another"),
        (
            "-logsigmoid(chosen(m) - rejected(m))",
            {"lets": ["m = exp(mean(logp over tokens)) + sum(position * logp over tokens)"]},
            "sums the log-probs of a completion in two ways",
        ),
        (
            "-logsigmoid(chosen(m) - rejected(m))",
            {"lets": ["m = exp(sum(exp(logp) over tokens))"]},
            "looks at the log-probs of a token in two ways",
        ),
        ("logsigmoid(s * logp) * exp(label * logp)", {"scores": ["s"], **BATCH}, "scales one distance in two ways"),
        ("(logp - sg(logp)) ^ 0.5", BATCH, "divides by 0"),
        ("mean(logp over batch) + mean(m over batch)", {"lets": [PAIR]}, "its terms are averaged in different ways"),
        ("sg(logp)", BATCH, ""),
    ],
)
def test_a_loss_without_the_form_is_its_own_penalty_and_says_why(
    loss: str, options: dict[str, object], why: str
) -> None:
    found = lift(of_text(loss, **options), examples=10)  # type: ignore[arg-type]
    assert found.verdict.good and not found.whole
    assert why in " ".join(row.why for row in found.left)
    assert all(row.why for row in found.left) and ("penalty" in found.text) == bool(found.left)


# --- random losses -------------------------------------------------------------------------------------------------

#: an activation in the language and in torch
ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "logistic": ("-logsigmoid({})", lambda x: -F.logsigmoid(x)),
    "softplus": ("softplus(-({}))", lambda x: F.softplus(-x)),
    "hinge": ("relu(1 - ({}))", lambda x: torch.relu(1 - x)),
    "square": ("({} - 0.5) ^ 2", lambda x: (x - 0.5) ** 2),
    "exponential": ("exp(-({}))", lambda x: torch.exp(-x)),
    "sigmoid": ("-sigmoid({})", lambda x: -torch.sigmoid(x)),
    "tanh": ("-tanh({})", lambda x: -torch.tanh(x)),
    "swish": ("-({0}) * sigmoid({0})", lambda x: -x * torch.sigmoid(x)),
    "linear": ("-({})", lambda x: -x),
    "absolute": ("abs({} - 0.3)", lambda x: (x - 0.3).abs()),
    "worst": ("max(-({0}), 0.2 * ({0}))", lambda x: torch.maximum(-x, 0.2 * x)),
}
#: a measure of a completion in the language and in torch: (logp, logp_ref, position), masked slots 0
MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "sum(logp over tokens)": lambda p, q, t, n: p.sum(1),
    "sum(logp - logp_ref over tokens)": lambda p, q, t, n: (p - q).sum(1),
    "mean(logp over tokens)": lambda p, q, t, n: p.sum(1) / n,
    "mean(logp - logp_ref over tokens)": lambda p, q, t, n: (p - q).sum(1) / n,
    "sum(0.9 ^ position * logp over tokens)": lambda p, q, t, n: (0.9**t * p).sum(1),
    "sum(logp over tokens) - length": lambda p, q, t, n: p.sum(1) - n,
    "exp(mean(logp over tokens))": lambda p, q, t, n: torch.exp(p.sum(1) / n),
}


class Drawn:
    """A random loss per pair: up to three activations of margins, or of one response; as text, and in torch."""

    def __init__(self, seed: int) -> None:
        pick = random.Random(seed)
        self.measure = pick.choice(list(MEASURES))
        self.terms = []
        for _ in range(pick.choice((1, 1, 2, 3))):
            looks = pick.choice(("margin", "margin", "chosen", "rejected"))
            self.terms.append((pick.choice((1, 0.5, 2)), pick.choice(list(ACTIVATIONS)), looks, pick.choice((1, 0.3))))

    @property
    def text(self) -> str:
        looks = {
            "margin": "{0} * (chosen(m) - rejected(m))",
            "chosen": "{0} * chosen(m)",
            "rejected": "{0} * rejected(m)",
        }
        return " + ".join(
            f"{weight} * ({ACTIVATIONS[name][0].format(looks[look].format(scale))})"
            for weight, name, look, scale in self.terms
        )

    def coefficients(self, given: grolang.Batch) -> Tensor:
        """−∂(mean over groups)/∂logp by autograd: nothing of grolang but the batch."""
        assert given.logp is not None and given.logp_ref is not None and given.label is not None
        assert given.group is not None
        logp = given.logp.clone().requires_grad_()
        mask = given.mask.double()
        position = (mask.cumsum(1) - 1).clamp(min=0)
        m = MEASURES[self.measure](logp * mask, given.logp_ref * mask, position * mask, mask.sum(1))
        losses = []
        for group in range(3):
            rows = given.group == group
            chosen, rejected = m[rows & (given.label > 0)].sum(), m[rows & (given.label < 0)].sum()
            seen = {"margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
            losses.append(sum(w * ACTIVATIONS[name][1](scale * seen[look]) for w, name, look, scale in self.terms))
        torch.stack(losses).mean().backward()
        assert logp.grad is not None
        return -logp.grad * mask


def lifts(seed: int) -> bool:
    """Lift a random loss and hold it against autograd; whether anything of it took the form."""
    drawn = Drawn(seed)
    found = lift(of_text(drawn.text, data="preference", lets=[f"m = {drawn.measure}"]), examples=FEW)
    method = from_source(source(found))
    for number in range(4):
        given = batch(4 * seed + number)
        torch.testing.assert_close(
            method.coefficients(given),
            drawn.coefficients(given),
            rtol=1e-9,
            atol=1e-11,
            msg=lambda text: f"seed {seed}: {text}\n{found.text}",
        )
    assert all(row.why for row in found.left), found.text
    return found.whole


#: what a completion's measure is compared with, in the language and in torch: (measures, Σ logp_ref, lengths)
ANCHORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor | float]] = {
    "0.3": lambda m, r, n: 0.3,
    "sum(logp_ref over tokens)": lambda m, r, n: r,
    "sg(mean(m over batch))": lambda m, r, n: m.detach().mean(),
    "length": lambda m, r, n: n,
}


def lifts_alone(seed: int) -> bool:
    """The same for losses of single completions, and of single tokens, each weighted by the data's verdict."""
    pick = random.Random(seed)
    name, scale = pick.choice(list(ACTIVATIONS)), pick.choice((1, 0.5, 2))
    shape, torch_shape = ACTIVATIONS[name]
    if pick.random() < 0.5:
        measure, anchor = pick.choice(list(MEASURES)), pick.choice(list(ANCHORS))
        text = f"{shape.format(f'{scale} * label * (m - {anchor})')}"
        question = of_text(text, data="unpaired", lets=[f"m = {measure}"])
    else:
        measure, anchor = "", ""
        weight = pick.choice(("r", "r * label", "2", "(r - mean(r over batch))"))
        text = f"{weight} * ({shape.format(f'{scale} * (logp - logp_old)')})"
        question = of_text(text, data="unpaired", aggregate="mean over tokens, mean over sequences", scores=["r"])
    found = lift(question, examples=FEW)
    method = from_source(source(found))
    for number in range(4):
        given = batch(4 * seed + number)
        assert given.logp is not None and given.logp_ref is not None and given.logp_old is not None
        assert given.label is not None
        logp, mask = given.logp.clone().requires_grad_(), given.mask.double()
        lengths = mask.sum(1)
        if measure:
            position = (mask.cumsum(1) - 1).clamp(min=0) * mask
            m = MEASURES[measure](logp * mask, given.logp_ref * mask, position, lengths)
            distance = m - ANCHORS[anchor](m, (given.logp_ref * mask).sum(1), lengths)
            loss = torch_shape(scale * given.label * distance).mean()
        else:
            r = given.scores["r"]
            weights = {"r": r, "r * label": r * given.label, "2": r * 0 + 2, "(r - mean(r over batch))": r - r.mean()}
            each = weights[weight][:, None] * torch_shape(scale * (logp - given.logp_old))
            loss = ((each * mask).sum(1) / lengths).mean()
        loss.backward()
        assert logp.grad is not None
        torch.testing.assert_close(
            method.coefficients(given),
            -logp.grad * mask,
            rtol=1e-9,
            atol=1e-11,
            msg=lambda words: f"seed {seed}: {words}\n{found.text}",
        )
    return found.whole


def test_random_losses_lift_to_their_autograd_gradient() -> None:
    assert sum(lifts(seed) for seed in range(12)) >= 10
    assert sum(lifts_alone(seed) for seed in range(12)) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_random_losses_lift_to_their_autograd_gradient(part: int) -> None:
    size = 40
    seeds = range(1000 + part * size, 1000 + (part + 1) * size)
    assert sum(lifts(seed) for seed in seeds) >= 0.8 * size
    assert sum(lifts_alone(seed) for seed in seeds) >= 0.8 * size


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    Path("bare.gro").write_text("method bare\ndata preference\nreward = label\n", encoding="utf-8")

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["lift", *words, "--examples", "3"])
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


Call = Callable[..., tuple[int, str, str]]


def test_a_loss_that_begins_with_a_minus_sign_is_no_option(run: Call) -> None:
    code, out, err = run("-logp * r", "--score", "r", "--aggregate", "mean over batch", "--name", "plain")
    assert code == 0 and out.startswith("method plain\ndata prompts\nscore r\n") and "(proved)" in err


def test_a_file_is_written_once_and_never_over_another(run: Call) -> None:
    words = ("-o", "mine.gro", "dpo", "--law", "gradient", "--name", "mine")
    code, out, _ = run(*words)
    text = Path("mine.gro").read_text(encoding="utf-8")
    assert (code, out) == (0, "") and "omega(z)  = beta * sigmoid(-z)" in text
    assert main(["test", "mine.gro"]) == 0
    code, out, err = run(*words)
    assert code == 2 and "there already" in err and Path("mine.gro").read_text(encoding="utf-8") == text
    assert run("dpo", "--law", "gradient", "-o", "no/where.gro")[0] == 2


def test_what_stays_a_penalty_is_said_beside_the_file(run: Call) -> None:
    code, out, err = run("cpo", "--law", "gradient")
    assert code == 0 and "`-chosen(measure)` stays a penalty" in err and "penalty   = -chosen(measure)" in out
    code, out, err = run("-logsigmoid(m - mean(m over group))", "--data", "prompts", "--let", PAIR)
    assert code == 1 and "penalty" in out and "nothing of the loss has the form" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("-logsigmoid(bta * label * logp)",), 1, "--param bta=0.1"),
        (("-logp * advantage",), 1, "--let 'advantage = …'"),
        (("-logp +", "--aggregate", "mean over batch"), 1, "E101"),
        (("-logp",), 1, "E305"),
        (("-logp * r", "--score", "r=exact"), 1, "exact_match"),
        (("-logp", "--param", "beta"), 1, "NAME=VALUE"),
        (("-logp", "--param", "beta=x"), 1, "E101"),
        (("-logp", "--data", "soup", "--aggregate", "mean over batch"), 1, "E403"),
        (("nothing.gro",), 2, "no file"),
        (("bare.gro",), 1, "no law of a loss"),
        (("dpo", "--law", "prompt_only"), 1, "`gradient`"),
        (("dpo", "--data", "preference"), 2, "a file says itself"),
        ((), 2, "LOSS"),
        (("-logp", "-logp"), 2, "unexpected"),
    ],
)
def test_a_wrong_question_says_what_to_write(words: tuple[str, ...], code: int, says: str, run: Call) -> None:
    found, _, err = run(*words)
    assert says in err and "bug" not in err, err
    assert found == code, err
