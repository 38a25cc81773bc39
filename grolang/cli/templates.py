"""The files that `grolang new` writes, one for each kind of data. Each checks without a finding."""

from __future__ import annotations

from pathlib import Path

from grolang.language.source import Source

_HEAD = """\
# {name}: what the method does, and where it is from (paper, equation).
# Check it with `grolang check {name}.gro`; train with `grolang run {name}.gro`.
method {name} "One line for tables and logs"
"""

_PREFERENCE = """\
# Rows have `prompt`, `chosen` and `rejected`; the two responses of a row are a group.
data preference
# Settable from outside: `--set beta=0.2`. A value outside of the bounds is an error.
param beta = 0.1 in (0, inf) "how strongly the reference holds"

reward    = label  # +1 for the chosen response, -1 for the rejected one
measure   = sum(logp - logp_ref over tokens)  # what is compared with the anchor
anchor    = opposite(measure)  # the same of the other response
alpha     = beta * label
omega(z)  = beta * sigmoid(-z)  # the weight; z is alpha * (measure - anchor), the margin of the pair
aggregate = sum over tokens, sum over group, mean over groups  # from the tokens up to one number

# Figures to log at every step.
report margin   = beta * (chosen(measure) - rejected(measure))
report accuracy = chosen(measure) > rejected(measure)

# A claim that can be tested: the coefficients are minus the gradient of this loss.
law gradient: loss -logsigmoid(beta * (chosen(measure) - rejected(measure)))
"""

_UNPAIRED = """\
# Rows have `prompt`, `completion` and `label`.
data unpaired
# Settable from outside: `--set beta=0.2`. A value outside of the bounds is an error.
param beta = 0.1 in (0, inf) "how strongly the reference holds"

reward    = label  # +1 for a good completion, -1 for a bad one
measure   = sum(logp - logp_ref over tokens)  # what is compared with the anchor, which is 0 unless it is given
alpha     = beta * label
omega(z)  = beta * sigmoid(-z)  # the weight; z is alpha * (measure - anchor)
aggregate = sum over tokens, mean over sequences  # from the tokens up to one number

# Figures to log at every step.
report implicit_reward = beta * measure

# A claim that can be tested: the coefficients are minus the gradient of this loss.
law gradient: loss -logsigmoid(beta * label * measure)
"""

_PROMPTS = """\
# Rows have `prompt` and any columns that the scores use; completions are drawn while training.
data prompts
# Completions for each prompt.
group 8
# A number per completion from outside: a built-in score, or your own with `--score correct=file.py:function`.
score correct = exact_match "1 when the completion's answer is the row's answer"

reward    = correct
baseline  = mean(reward over others)  # the others of its group, so that the estimate stays unbiased
aggregate = sum over tokens, mean over sequences  # from the tokens up to one number

# Figures to log at every step.
report accuracy = correct
"""

_DEMONSTRATIONS = """\
# Rows have `prompt` and `completion`.
data demonstrations

reward    = 1  # every token of a demonstration is imitated with the same weight
aggregate = mean over batch  # over all tokens of the step

# Figures to log at every step.
report nll = -logp

# A claim that can be tested: the coefficients are minus the gradient of this loss.
law gradient: loss -logp aggregate mean over batch
"""

TEMPLATES = {
    "preference": _HEAD + _PREFERENCE,
    "unpaired": _HEAD + _UNPAIRED,
    "prompts": _HEAD + _PROMPTS,
    "demonstrations": _HEAD + _DEMONSTRATIONS,
}


def extending(name: str, parent: Source) -> str:
    """A file that is its parent still, with the parent's statements in comments, ready to be replaced."""
    of = Path(parent.name).stem
    said: list[str] = []
    for line in parent.text.splitlines():
        if line.startswith((" ", "\t")):
            said += [line] if said and said[-1] else []
        elif line and not line.startswith("#"):
            said.append("" if line.split()[0] in ("method", "extends", "data", "law") else line)
    listed = "\n".join(f"# {line}" for line in said if line)
    return (
        _HEAD.format(name=name)
        + f"extends {of}\n\n# What {of} says; take `# ` away and change the statement, and this one counts:\n{listed}\n"
        + f"\n# True while nothing is changed.\nlaw unchanged: equals {of}\n"
    )
