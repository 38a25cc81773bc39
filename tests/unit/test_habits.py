"""What people write from Python, LaTeX and the trainers: the message names an edit, and the edit mends the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from grolang.language import habits
from grolang.language.checker import check, check_file
from grolang.language.habits import SLIPS, Slip
from grolang.language.source import Source
from grolang.language.syntax import parse

PAIRS = "method mine\ndata preference\n"
PROMPTS = "method mine\ndata prompts\nscore correct = exact_match\n"
REWARD = PAIRS + "reward = label\n"
SCORED = PROMPTS + "reward = correct\n"

#: the file's head, the lines as written, the edit that the message names, the lines with that edit
ROWS = [
    # Python's statements
    (PAIRS, "def reward():\n    label", "write `NAME = EXPRESSION`", "reward = label"),
    (REWARD, "import torch", "delete the line", ""),
    (REWARD, "return reward", "delete the line", ""),
    (PAIRS, "if label > 0:\n  reward = 2", "write `NAME = A if CONDITION else B`", "reward = 2 if label > 0 else 0"),
    (REWARD, "for t in tokens:\n  x = 1", "delete the line", ""),
    ("", "class DPO:\n  pass", "begin the file with `method NAME`", REWARD),
    (SCORED, "print(correct)", "write `report NAME = EXPRESSION`", "report accuracy = correct"),
    (PAIRS, "reward := label", "write `=` for `:=`", "reward = label"),
    (PAIRS, "reward: label", "write `=` for `:`", "reward = label"),
    (PAIRS, "reward == label", "delete `=`", "reward = label"),
    (PAIRS, "reward += label", "write the whole value, once: `NAME = A + B`", "reward = 0 + label"),
    (REWARD, "omega(z) = return sigmoid(-z)", "delete `return`", "omega(z) = sigmoid(-z)"),
    (REWARD, "omega(z) = lambda z: sigmoid(-z)", "delete `lambda z:`", "omega(z) = sigmoid(-z)"),
    (REWARD, "omega = sigmoid(-measure)", "write `omega(z) = …`", "omega(z) = sigmoid(-z)"),
    (PAIRS, "reward = 1 if label > 0 elif label < 0: 2", "`A if CONDITION else B`", "reward = 1 if label > 0 else 2"),
    (PAIRS, "reward = label ** 2", "write a power with `^`", "reward = label ^ 2"),
    (PAIRS, "reward = label // 2", "write `/`", "reward = label / 2"),
    (PAIRS, "reward = label @ label", "write `*`", "reward = label * label"),
    (PAIRS, "reward = label <> 2", "write `!=`", "reward = label != 2"),
    (PAIRS, "reward = 1 if label = 1 else 0", "compare with `==`", "reward = 1 if label == 1 else 0"),
    (PAIRS, "reward = label > 0 & 1", "write `and`", "reward = label > 0 and 1"),
    (PAIRS, "reward = label > 0 | 1", "write `or`", "reward = label > 0 or 1"),
    (PAIRS, "reward = !label", "write `not`", "reward = not label"),
    (PAIRS, "reward = label > 0 ? 1 : 2", "write `A if CONDITION else B`", "reward = 1 if label > 0 else 2"),
    (PAIRS, "reward = 1 if label > 0", "every `if` has an `else`", "reward = 1 if label > 0 else 0"),
    (PAIRS, "reward = label;", "delete `;`", "reward = label"),
    (
        PAIRS,
        "reward = label; baseline = 0",
        "start each statement on a line of its own",
        "reward = label\nbaseline = 0",
    ),
    (PAIRS, "reward = True", "write `1`", "reward = 1"),
    (REWARD, "baseline = None", "leave the line out", ""),
    (PAIRS, "reward = where(label > 0, 1, 2)", "write `A if CONDITION else B`", "reward = 1 if label > 0 else 2"),
    (PAIRS, "reward = label[0]", "chosen(x)", "reward = chosen(label)"),
    (PAIRS, "reward = label // the label", "start a comment with `#`", "reward = label # the label"),
    (REWARD, "// a comment", "start a comment with `#`", "# a comment"),
    (REWARD, "% a comment", "start a comment with `#`", "# a comment"),
    (REWARD, '"""A comment."""', "start a comment with `#`", "# A comment."),
    # calls and parts of other libraries
    (PAIRS, "reward = torch.exp(label)", "delete `torch.`", "reward = exp(label)"),
    (PAIRS, "reward = label * np.exp(label)", "delete `np.`", "reward = label * exp(label)"),
    (PAIRS, "reward = F.logsigmoid(label)", "delete `F.`", "reward = logsigmoid(label)"),
    (REWARD, "anchor = measure.detach()", "write `sg(measure)`", "anchor = sg(measure)"),
    (REWARD, "anchor = logp.mean(-1)", "write `mean(logp over tokens)`", "anchor = mean(logp over tokens)"),
    (
        REWARD,
        "anchor = (logp - logp_ref).mean(-1)",
        "write `mean(… over tokens)` around it",
        "anchor = mean(logp - logp_ref over tokens)",
    ),
    (PAIRS, "reward = label.exp()", "write `exp(label)`", "reward = exp(label)"),
    (PAIRS, "reward = label.data", "written by its name alone", "reward = label"),
    (REWARD, "anchor = mean(logp, dim=1)", "name the axis: `mean(x over tokens)`", "anchor = mean(logp over tokens)"),
    (REWARD, "anchor = mean(logp, -1)", "write `mean(logp over tokens)`", "anchor = mean(logp over tokens)"),
    (PAIRS, "reward = clip(label, lo=0, 1)", "delete `lo=`", "reward = clip(label, 0, 1)"),
    (PAIRS, "reward = clamp(label, 0, 1)", "write `clip(x, lo, hi)`", "reward = clip(label, 0, 1)"),
    (REWARD, "penalty = logp * no_grad(logp)", "write `sg(x)`", "penalty = logp * sg(logp)"),
    (REWARD, "penalty = ln(1 - logp)", "write `log(x)`", "penalty = log(1 - logp)"),
    (REWARD, "penalty = -log_sigmoid(logp)", "write `logsigmoid(x)`", "penalty = -logsigmoid(logp)"),
    (REWARD, "anchor = avg(logp over tokens)", "write `mean(x over AXIS)`", "anchor = mean(logp over tokens)"),
    (REWARD, "anchor = var(logp over tokens)", "std(x over AXIS) ^ 2", "anchor = std(logp over tokens) ^ 2"),
    # the trainers' names
    (REWARD, "anchor = logps", "write `logp`", "anchor = logp"),
    (REWARD, "anchor = ref_logps", "write `logp_ref`", "anchor = logp_ref"),
    (REWARD, "anchor = old_per_token_logps", "write `logp_old`", "anchor = logp_old"),
    (REWARD, "anchor = rollout_log_probs", "write `logp_sampler`", "anchor = logp_sampler"),
    (
        REWARD,
        "anchor = chosen_logps",
        "write `chosen(sum(logp over tokens))`",
        "anchor = chosen(sum(logp over tokens))",
    ),
    (REWARD, "anchor = sum(logp * mask over tokens)", "leave it out", "anchor = sum(logp over tokens)"),
    (REWARD, "penalty = kl", "write it out: `logp - logp_ref`", "penalty = logp - logp_ref"),
    (PAIRS, "reward = softmax(label)", "write it out", "reward = exp(label) / sum(exp(label) over group)"),
    (PROMPTS, "advantages = correct", "write `advantage` for `advantages`", "advantage = correct"),
    (PROMPTS, "reward = rewards", "or `score rewards`", "score rewards\nreward = rewards + correct"),
    (SCORED, "advantage = rewards - 1", "write `reward`", "advantage = reward - 1"),
    (PROMPTS, "reward = correct / num_generations", "write `group_size`", "reward = correct / group_size"),
    (SCORED, "num_generations = 8", "write `group 8`", "group 8"),
    (SCORED, "group_size = 8", "write `group 8`", "group 8"),
    (SCORED, "group num_generations", "write a number, such as `group 8`", "group 8"),
    (SCORED, "group = 8", "delete `=`", "group 8"),
    (SCORED, "group size = 8", "write a number, such as `group 8`", "group 8"),
    (REWARD, 'loss_type = "sigmoid"', "delete the line: a text is no value", ""),
    (PAIRS, "param b = 20%\nreward = b", "write the share: `0.2` for `20%`", "param b = 0.2\nreward = b"),
    (PAIRS, "param b = 1 in [0, 1\nreward = b", "close the bounds", "param b = 1 in [0, 1]\nreward = b"),
    (PROMPTS, "reward = demonstration", "`data prompts + demonstrations`", "reward = correct"),
    (
        PAIRS,
        "loss = -chosen(sum(logp over tokens))",
        "claim it",
        "law g: loss -chosen(sum(logp over tokens))\nreward = 1",
    ),
    (SCORED, 'aggregate = "token-mean"', "write `mean over batch`", "aggregate = mean over batch"),
    (
        SCORED,
        'aggregate = "seq-mean-token-sum"',
        "write `sum over tokens, mean over sequences`",
        "aggregate = sum over tokens, mean over sequences",
    ),
    # declarations
    ("", "method: mine\ndata preference\nreward = label", "delete `:`", REWARD),
    ("method mine\n", "data = preference\nreward = label", "delete `=`", "data preference\nreward = label"),
    ("method mine\n", 'data "preference"\nreward = label', "write `preference`", "data preference\nreward = label"),
    ("method mine\n", "data paired\nreward = label", "write `data preference`", "data preference\nreward = label"),
    ("method mine\n", "data sft\nreward = 1", "write `data demonstrations`", "data demonstrations\nreward = 1"),
    (
        "method mine\n",
        "data prompts and demonstrations\nreward = 1",
        "write `+` for `and`",
        "data prompts + demonstrations\nreward = 1",
    ),
    ("", "method my-dpo\ndata preference\nreward = label", "write `my_dpo`", "method my_dpo" + REWARD[11:]),
    ("", "method mine My Method\n" + REWARD[12:], 'quotes: `"My Method"`', 'method mine "My Method"\n' + REWARD[12:]),
    ("", "method mine 'Mine'\n" + REWARD[12:], 'straight quotes: `"`', 'method mine "Mine"\n' + REWARD[12:]),
    ("", "method mine {\n  data preference\n}\n", "delete `{`", REWARD),
    ("", '{"method": "mine"}', "begin the file with `method NAME`", REWARD),
    (REWARD, "}", "delete `}`", ""),
    ("", "method mine(dpo)", "write `extends dpo` on a line of its own", "method mine\nextends dpo"),
    ("method mine\n", "extend dpo", "write `extends dpo`", "extends dpo"),
    ("method mine\n", "extends dpo.gro", "delete `.gro`", "extends dpo"),
    ("method mine\n", "params beta = 0.1\nextends dpo", "write `param beta`", "param beta = 0.1\nextends dpo"),
    (PAIRS, "param beta: 0.1\nreward = beta", "write `=` for `:`", "param beta = 0.1\nreward = beta"),
    (PAIRS, "param beta: float = 0.1\nreward = beta", "delete `: float`", "param beta = 0.1\nreward = beta"),
    (PAIRS, "param beta\nreward = beta", "write `param beta = NUMBER", "param beta = 1\nreward = beta"),
    (PAIRS, "param b = 1/10\nreward = b", "a default is one number", "param b = 0.1\nreward = b"),
    (PAIRS, "param b = 1 > 0\nreward = b", "write bounds as `in (0, inf)`", "param b = 1 in (0, inf)\nreward = b"),
    (PAIRS, "param b = 1 in (0, 1, 2)\nreward = b", "delete `, 2`", "param b = 1 in (0, 1]\nreward = b"),
    (PAIRS, "param b = 1 in {0, 2}\nreward = b", "bounds are written", "param b = 1 in (0, 2)\nreward = b"),
    (PAIRS, "param b = 1, c = 2\nreward = b", "start a new line", "param b = 1\nparam c = 2\nreward = b * c"),
    (PAIRS, "param b = 1_000\nreward = b", "write the number without `_`", "param b = 1000\nreward = b"),
    (PAIRS, 'param b = float("inf")\nreward = b', "write `inf`", "param b = inf\nreward = b"),
    (PAIRS, "param b = 1 in (0, ∞)\nreward = b", "write `inf`", "param b = 1 in (0, inf)\nreward = b"),
    (PAIRS, 'param b = 1 "help\nreward = b', 'close the text with `"`', 'param b = 1 "help"\nreward = b'),
    (PAIRS, "my reward = label", "write `my_reward`", "reward = label"),
    (PROMPTS, "score good = good(x)\nreward = good", "write `score good` alone", "score good\nreward = good * correct"),
    (
        PROMPTS,
        'score good = "length"\nreward = good',
        "write `length`, without quotes",
        "score good = length\nreward = good * correct",
    ),
    (SCORED, "report mean(correct over batch)", "write `report NAME = EXPRESSION`", "report accuracy = correct"),
    (SCORED, "law a: == reinforce", "write `equals` for `==`", "law a: equals reinforce"),
    (SCORED, "law a: unbiased x", "delete `x`", "law a: unbiased"),
    (SCORED, "law a: unbiased x y", "delete what stands from `x` on", "law a: unbiased"),
    (
        SCORED,
        "law a: loss -logp",
        "`aggregate sum over tokens, mean over sequences`",
        "law a: loss -logp aggregate sum over tokens, mean over sequences",
    ),
    (SCORED, "group 2 3", "delete `3`", "group 2"),
    (PAIRS, "\treward = label", "start a new one in column 1", "reward = label"),
    (PAIRS, "reward = (label +\n1)", "a continued line starts with blanks", "reward = (label +\n  1)"),
    (PAIRS, "reward = (label", "close the parenthesis", "reward = (label)"),
    # axes and steps
    (SCORED, "baseline = mean(correct by batch)", "write `over` for `by`", "baseline = mean(correct over batch)"),
    (SCORED, "baseline = mean(correct over the batch)", "delete `the`", "baseline = mean(correct over batch)"),
    (SCORED, "baseline = mean(correct) over batch", "`mean(x over group)`", "baseline = mean(correct over group)"),
    (SCORED, "baseline = mean correct", "write `mean(…)`", "baseline = mean(correct over batch)"),
    (SCORED, "anchor = sum(logp for t in T)", "write `sum(x over tokens)`", "anchor = sum(logp over tokens)"),
    (SCORED, "anchor = sum_t logp", "write `sum(x over tokens)`", "anchor = sum(logp over tokens)"),
    (SCORED, "baseline = E[correct]", "write `mean(x over batch)`", "baseline = mean(correct over batch)"),
    (
        SCORED,
        "aggregate = sum over tokens * 2, mean over sequences",
        "write a divisor",
        "aggregate = sum over tokens / 0.5, mean over sequences",
    ),
    (
        SCORED,
        "aggregate = sum over tokens / (2 * 3), mean over sequences",
        "divide by one number",
        "aggregate = sum over tokens / 6, mean over sequences",
    ),
    (SCORED, "aggregate = mean(tokens)", "for example `aggregate", "aggregate = mean over batch"),
    (
        SCORED,
        "aggregate = sum over tokens / advantage, mean over sequences",
        "by `advantage` in `credit`",
        "credit = 1 / (advantage + 1)",
    ),
    # numbers and mathematics
    (PAIRS, "reward = 2 label", "write `*` before `label`", "reward = 2 * label"),
    (PAIRS, "reward = 2 (label)", "write `*` before `(`", "reward = 2 * (label)"),
    (PAIRS, "reward = (label)(2)", "write `*` before `(`", "reward = (label) * (2)"),
    (PAIRS, "reward = 0.5.2 * label", "delete `.2`", "reward = 0.5 * label"),
    (PAIRS, "reward = 2 · label", "write `*`", "reward = 2 * label"),
    (PAIRS, "reward = 2 − label", "write `-`", "reward = 2 - label"),
    (PAIRS, "reward = label ÷ 2", "write `/`", "reward = label / 2"),
    (PAIRS, "reward = 1 if label ≤ 0 else 2", "write `<=`", "reward = 1 if label <= 0 else 2"),
    (PAIRS, "reward = 1 if label ≥ 0 else 2", "write `>=`", "reward = 1 if label >= 0 else 2"),
    (PAIRS, "reward = 1 if label ≠ 0 else 2", "write `!=`", "reward = 1 if label != 0 else 2"),
    (PAIRS, "reward = √2 * label", "write `sqrt(x)`", "reward = sqrt(2) * label"),
    (PAIRS, "reward = label²", "write `^ 2`", "reward = label ^ 2"),
    (PAIRS, "reward = |label|", "write `abs(x)`", "reward = abs(label)"),
    (PAIRS, "reward = 1{label > 0}", "write `(label > 0)`", "reward = (label > 0)"),
    (PAIRS, "reward = 2 * {label}", "write `(` for `{`", "reward = 2 * (label)"),
    (PAIRS, "reward = 2 \\cdot label", "write `*`", "reward = 2 * label"),
    (PAIRS, "reward = \\label", "write `label`, without the backslash", "reward = label"),
    (PAIRS, "reward = \\frac{label}{2}", "write `(A) / (B)`", "reward = (label) / (2)"),
    (PAIRS, "reward = \\left(label\\right)", "write the bracket alone", "reward = (label)"),
    (PAIRS, "reward = \\mathrm{label}", "write the name alone", "reward = label"),
    (REWARD, "anchor = \\log \\pi_\\theta", "write `logp`", "anchor = logp"),
    (REWARD, "anchor = \\sum logp", "write `sum(x over tokens)`", "anchor = sum(logp over tokens)"),
    (REWARD, "omega(z) = \\sigma(-z)", "write `sigmoid(x)`", "omega(z) = sigmoid(-z)"),
    (REWARD, "omega(z) = 1 / (1 + e^z)", "write `exp(x)`", "omega(z) = 1 / (1 + exp(z))"),
    (REWARD, "omega(z) = log exp(z)", "write `log(…)`", "omega(z) = log(exp(z))"),
    (PAIRS, "rеward = label", "names are made of Latin and Greek letters", "reward = label"),  # a Cyrillic e
    # keywords
    (PAIRS, "reward = else", "call yours `my_else`", "my_else = 2\nreward = my_else * label"),
    (PAIRS, "reward = label * group", "write `group_size`", "reward = label * group_size"),
]


def found(text: str) -> list[str]:
    """The edits of a file's findings."""
    return [finding.help for finding in check(Source("mine.gro", text)).findings]


@pytest.mark.parametrize(("head", "wrong", "edit", "mended"), ROWS, ids=lambda part: part.strip()[:40])
def test_the_edit_that_a_message_names_mends_the_file(head: str, wrong: str, edit: str, mended: str) -> None:
    helps = found(f"{head}{wrong}\n")
    assert any(edit in help for help in helps), helps
    checked = check(Source("mine.gro", f"{head}{mended}\n"))
    assert checked.method is not None, checked.errors
    assert not any(edit in finding.help for finding in checked.findings)


def programs() -> Iterator[str]:
    """Every wrong file of this page and of the golden programs."""
    yield from (f"{head}{wrong}\n" for head, wrong, _, _ in ROWS)
    for path in sorted((Path(__file__).parents[1] / "golden" / "bad").glob("e101*.gro")):
        yield path.read_text(encoding="utf-8")


def test_every_slip_of_the_table_is_shown_by_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    told: set[Slip] = set()
    edit = Slip.edit

    def spied(row: Slip, marked: str, accepted: frozenset[str]) -> str:
        help = edit(row, marked, accepted)
        if help:
            told.add(row)
        return help

    monkeypatch.setattr(Slip, "edit", spied)
    parse.cache_clear()
    for text in programs():
        found(text)
    assert not [row.pattern for row in SLIPS if row not in told]


def test_a_name_of_another_place_is_no_name_of_the_language() -> None:
    known = {*habits._MEANT, *habits._SAID}
    text = PAIRS + "reward = label\n" + "".join(f"report r{i} = {name}\n" for i, name in enumerate(sorted(known)))
    assert len(check(Source("mine.gro", text)).errors) == len(known)


def test_statements_that_do_not_parse_have_no_findings_for_what_they_declare() -> None:
    for text in ("method m\n  data preference\n  reward = label\n", "method m:\ndata preference\nreward = label\n"):
        assert len(check(Source("mine.gro", text)).findings) == 1
    assert len(check(Source("mine.gro", "method m\nextends dpo 2\n")).findings) == 1
    assert len(check(Source("mine.gro", PAIRS + "f(x) = x\nreward = f(label)\n")).findings) == 1


def test_a_built_in_method_has_no_edit() -> None:
    assert not any("write `" in finding.help for finding in check_file("dpo").findings)
