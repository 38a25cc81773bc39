"""Findings in words: for a terminal, and as the page of the manual."""

from __future__ import annotations

import importlib.metadata
import platform
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from grolang.integrations.audit import Comparison, Difference, Finding
from grolang.integrations.peer import KNOWN, Loss, Peer, installed

TITLES = {"trl": "TRL", "verl": "verl", "liger": "Liger"}

INTRO = """\
# Other people's losses

Each loss below is the library's own code, run as it is on small batches, its gradient taken by autograd and compared
with the coefficients of a method here. The verdicts are numbers; the notes are words about them.

- **compared with** is the built-in method that the loss should be, and the parameters that its options mean.
- **verdict**: *equal* on every batch, up to rounding; *k ×*, one factor on all of them; *a to b ×*, a factor that
  depends on the batch; else *differs*, first in the part of the method that is named (in the *gradient* where only the
  aggregation is another): what it is there, and what the method has, on a small batch that shows it.
- **equal with** lists the statements that turn the method into the loss, all of them needed. For TRL's `GRPOConfig()`:

```gro
method like_trl
extends dapo
σ_g = sample_std(reward over group) + 0.0001
```

```sh
grolang run like_trl.gro --set epsilon_high=0.2
```

- **cut in two**: the gradient of two micro-batches, accumulated as the library does, against that of one.

A method here never depends on the micro-batch.

Differences that one may look for, and the rows that show them:

- The spread divides by N − 1: `GRPOConfig(loss_type="grpo")`, `adv_estimator=grpo loss_mode=vanilla`. Liger is given
  its advantages.
- `dr_grpo` still divides by the spread: `GRPOConfig(loss_type="dr_grpo")`. In verl `norm_adv_by_std_in_grpo=False`
  mends it.
- CISPO's upper bound is 0.2 by default, and bounds the ratio itself: `GRPOConfig(loss_type="cispo")`,
  `LigerFusedLinearGRPOLoss(loss_type="cispo")`. verl's is 1.2.
- IPO is three losses under one name: log-ratios averaged over tokens in `DPOConfig(loss_type="ipo")`; log-probs
  averaged, without a reference, in `CPOConfig` and `TPOConfig`; log-ratios summed, as the paper prints it, in
  `OnlineDPOConfig`. Liger's raises an error, and verl has none.
- A gradient depends on the micro-batch: every row that is not *same* when cut in two; where it says *2 ×*,
  micro-batches are added up, not averaged.
"""
WIDTH = 120


def command(loss: Loss) -> str:
    """The method and its parameters, as on a command line."""
    return " ".join([loss.method, *(f"--set {name}={value:g}" for name, value in loss.params.items())])


def verdict(finding: Finding) -> str:
    """One line: equal, proportional or different, and where first."""
    told = finding.claim
    if told is None:
        return "no built-in method"
    if told.word == "equal":
        return "equal"
    if told.word in ("proportional", "scaled"):
        return f"{times(told)} it"
    words = ["differs"]
    if finding.difference is not None:
        words.append(_place(finding.difference))
    if finding.first_step is not None and finding.first_step.word != "different":
        least = "equal" if finding.first_step.word == "equal" else f"{times(finding.first_step)} it"
        words.append(f"; {least} while `logp_old = logp`")
    return "".join(words)


def times(told: Comparison) -> str:
    """A factor, or the range of factors."""
    least, largest = (f"{factor:.4g}" for factor in told.factors)
    return f"{least} ×" if told.word == "proportional" else f"{least} to {largest} ×"


def _place(found: Difference) -> str:
    rows, slots = found.batch.mask.shape
    shape = f"{rows} rows of {'one token' if slots == 1 else f'up to {slots} tokens'}"
    return f" in {found.part}: {found.theirs:.4g} for {found.ours:.4g} ({shape})"


def cut(finding: Finding) -> str:
    """What two micro-batches do."""
    if finding.cut is None or finding.cut.word == "equal":
        return "same"
    return "differs" if finding.cut.word == "different" else times(finding.cut)


def with_(finding: Finding) -> list[str]:
    """The statements that make the method equal, up to a factor that is said."""
    loss, told = finding.loss, finding.exact
    if loss.beyond:
        return [f"no words for it: {loss.beyond}"]
    if told is None:
        return []
    if told.word == "different":
        return ["not equal even with", *loss.changes]
    return [*([f"{times(told)}"] if told.word != "equal" else []), *loss.changes]


def notes(finding: Finding, *, trap: bool = True) -> str:
    """The row's note (of a trap only if asked), other methods that equal the loss, gradients where none should be."""
    words = [finding.loss.note] if finding.loss.note and (trap or not finding.loss.trap) else []
    others = [name for name in finding.equal if name != finding.loss.method]
    if others:
        words.append("also equal: " + ", ".join(f"`{name}`" for name in others))
    if finding.outside > 1e-6:
        words.append(f"tokens outside of the completions get gradients too, up to {finding.outside:.2g} of the largest")
    return "; ".join(words)


def text(of: Peer, groups: Mapping[str, Sequence[Finding]]) -> str:
    """For a terminal: a paragraph for each loss."""
    lines = [f"{TITLES[of.name]} {installed(of.name)}: {of.about}"]
    for heading, findings in groups.items():
        lines += ["", heading]
        for finding in findings:
            lines += ["", f"  {finding.loss.name}"]
            against = f"    {command(finding.loss)}: " if finding.loss.method else "    "
            lines.append(against + verdict(finding))
            if told := with_(finding):
                head = "" if finding.loss.beyond else "equal with "
                lines.append(f"      {head}{told[0]}")
                lines += [f"      {'' if finding.loss.beyond else '           '}{line}" for line in told[1:]]
            if cut(finding) != "same":
                lines.append(f"      two micro-batches: {cut(finding)}")
            if said := notes(finding):
                lines.append(f"      note: {said}")
    return "\n".join(lines)


def page(peers: Iterable[tuple[Peer, Mapping[str, Sequence[Finding]]]]) -> str:
    """The whole page of the manual."""
    made = list(peers)
    names = [of.name for of, _ in made]
    command = f"`grolang audit {' '.join(names)} -o docs/audit.md`"
    return "\n".join([INTRO, _filled(f"Made by {command} with {versions(names)}."), *(section(*each) for each in made)])


def _filled(text: str, indent: str = "") -> str:
    """Lines of the manual's width."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def versions(names: Iterable[str]) -> str:
    """What the numbers were made with."""
    packages = [*(KNOWN[name].distribution for name in names), "torch", "transformers"]
    found = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in packages]
    return ", ".join([*found, f"Python {platform.python_version()}"])


def section(of: Peer, groups: Mapping[str, Sequence[Finding]]) -> str:
    """One library: what surprises, a table for each kind of loss, what was left out."""
    findings = [finding for group in groups.values() for finding in group]
    rounding = f"Differences below {of.tolerance:g} of the largest entry count as rounding."
    lines = ["", f"## {TITLES[of.name]} {installed(of.name)}", ""]
    lines += [_filled(f"Run: {of.about}. {rounding} {summary(findings)}")]
    traps = [finding for finding in findings if finding.loss.trap and finding.holds]
    if traps:
        lines += ["", "Not what one may expect:", ""]
        lines += [_filled(f"- `{item.loss.name}`: {item.loss.note}.", "  ") for item in traps]
    if of.recurring:
        lines += ["", "Statements that recur:", ""]
        lines += [f"- **{words}**: `{line}`" for line, words in of.recurring.items()]
    for heading, group in groups.items():
        lines += ["", f"### {heading}", "", *table(group, of.recurring)]
    lines += ["", "Left out:", "", *(_filled(f"- `{name}`: {why}.", "  ") for name, why in of.left_out.items())]
    return "\n".join(lines) + "\n"


def summary(findings: Sequence[Finding]) -> str:
    """How many are what."""
    words = [finding.claim.word if finding.claim else "different" for finding in findings]
    equal, scaled = words.count("equal"), words.count("proportional") + words.count("scaled")
    expressed = sum(1 for finding in findings if finding.exact is not None and finding.exact.word != "different")
    parts = sum(1 for finding in findings if cut(finding) != "same")
    return (
        f"Of {len(findings)} losses, {equal} equal a built-in method, {scaled} {'is' if scaled == 1 else 'are'} one up "
        f"to a factor, {expressed} equal one with changed statements, {len(findings) - equal - scaled - expressed} "
        f"cannot be written; {parts} depend on how a step is cut into micro-batches."
    )


def table(findings: Sequence[Finding], recurring: Mapping[str, str]) -> list[str]:
    """A row for each loss."""
    rows = [("loss", "compared with", "verdict", "equal with", "cut in two", "note"), ("---",) * 6]
    for finding in findings:
        against = f"`{command(finding.loss)}`" if finding.loss.method else ""
        short = {line: f"**{words}**" for line, words in recurring.items()}
        changes = [line if finding.loss.beyond else short.get(line, f"`{line}`") for line in with_(finding)]
        said = notes(finding, trap=False)
        row = (f"`{finding.loss.name}`", against, verdict(finding), "<br>".join(changes), cut(finding), said)
        rows.append(row)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
