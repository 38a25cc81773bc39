"""The faults, a row each. `old` stands exactly once in its file: a row whose text has changed fails a test."""

from __future__ import annotations

from dataclasses import dataclass

_AGREEMENT = "tests/laws/test_oracle_agreement.py"
ORACLE = f"{_AGREEMENT}::test_a_built_in_method_has_the_coefficients_derived_by_hand"
RANDOM = "tests/laws/test_random_methods.py"
PATHS = "tests/laws/test_gradient_paths.py"
DERIVATIVES = "tests/laws/test_derivatives.py"
CORNERS = "tests/laws/test_corner_cases.py"
DEGENERATE = "tests/laws/test_degenerate.py"
COMPARISONS = "tests/laws/test_comparisons.py"
SCHEDULES = "tests/laws/test_schedules.py"
PROOFS = "tests/laws/test_proofs.py"
CLAIMS = "tests/laws/test_claims.py"
LIFT = "tests/laws/test_lift.py"
FUNCTIONS = "tests/unit/test_functions.py"
GOLDEN = "tests/golden/test_golden.py"
FUSED = "tests/unit/test_fused.py"
FUSED_PARTS = "tests/unit/test_fused_parts.py"
CHOICES = "tests/docs/test_choices.py"
EXACT = "tests/runtime/test_runtime_exact.py"
PACKING = "tests/runtime/test_runtime_packing.py"
SAMPLING = "tests/runtime/test_runtime_sampling.py"
DECODING = "tests/runtime/test_runtime_decoding.py"
SHARED = "tests/runtime/test_runtime_shared_prompts.py"
PREPACKED = "tests/runtime/test_runtime_prepacked.py"
SAMPLES = "tests/runtime/test_runtime_samples.py"
ENGINES = "tests/runtime/test_runtime_engines.py"
SCORES = "tests/runtime/test_runtime_scores.py"
DATA = "tests/runtime/test_runtime_data.py"
FEED = "tests/runtime/test_runtime_feed.py"
RUN = "tests/runtime/test_runtime_run.py"
METRICS = "tests/runtime/test_runtime_metrics.py"
DESCENT = "tests/runtime/test_runtime_descent.py"
EVALUATION = "tests/runtime/test_runtime_evaluation.py"


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` is replaced by `new` in `file`; `hint` names the tests that should find it, run first."""

    name: str
    what: str
    file: str
    old: str
    new: str
    hint: tuple[str, ...]


def _rows(file: str, *rows: tuple[str, str, str, str, str]) -> tuple[Mutant, ...]:
    return tuple(Mutant(name, what, file, old, new, tuple(hint.split())) for name, what, old, new, hint in rows)


MUTANTS: tuple[Mutant, ...] = (
    *_rows(
        "grolang/compiler/lowering.py",
        (
            "upsilon_sign",
            "υ's sign is flipped",
            'push = build.apply("chain", outputs["upsilon"], push)',
            'push = build.apply("negate", build.apply("chain", outputs["upsilon"], push))',
            ORACLE,
        ),
        (
            "anchor_added",
            "measure + anchor instead of their difference",
            'distance = build.apply("subtract", low.component("measure"), low.component("anchor"))',
            'distance = build.apply("add", low.component("measure"), low.component("anchor"))',
            ORACLE,
        ),
        (
            "alpha_ignored",
            "ω's argument without alpha",
            'outputs["z"] = build.apply("multiply", low.component("alpha"), distance)',
            'outputs["z"] = distance',
            ORACLE,
        ),
        (
            "credit_dropped",
            "credit has no effect",
            'push = build.apply("multiply", outputs["credit"], outputs["omega"])',
            'push = outputs["omega"]',
            ORACLE,
        ),
        (
            "penalty_sign",
            "the penalty is climbed, not descended",
            'return total, build.apply("negate", slope)',
            "return total, slope",
            ORACLE,
        ),
        (
            "group_penalty_counted_once",
            "`over sequences` counts a group's penalty once, not once for each sequence",
            'if step.axis == "sequences" and left is Scope.GROUP:',
            'if step.axis == "sequences" and left is Scope.TOKEN:',
            f"{CHOICES} {RANDOM}",
        ),
        (
            "wrong_count_in_aggregate",
            "a mean of an aggregation divides by the batch's count",
            'weight = build.apply("divide", weight, build.count(left, after))',
            'weight = build.apply("divide", weight, build.count(left, Scope.BATCH))',
            ORACLE,
        ),
        (
            "divisor_multiplies",
            "`/ max_length` multiplies",
            'weight = build.apply("divide", weight, self._divisor(step.divisor))',
            'weight = build.apply("multiply", weight, self._divisor(step.divisor))',
            f"{ORACLE} {RANDOM}",
        ),
        (
            "lost_stop_gradient",
            "`sg` lets the gradient through",
            'return build.emit("stop", args, scope=build[args[0]].scope, world=world)',
            "return args[0]",
            DERIVATIVES,
        ),
        (
            "exchange_keeps_gradient",
            "a law's stand-in that holds `logp` carries a gradient",
            'return build.emit("stop", [made], scope=build[made].scope, world=world) if expr.live else made',
            "return made",
            f"{PATHS} {COMPARISONS} tests/laws",
        ),
        (
            "terminal_elsewhere",
            "`terminal` on every token but the last",
            'return build.apply("choose", last, args[0], build.number(0), world=world)',
            'return build.apply("choose", last, build.number(0), args[0], world=world)',
            f"{ORACLE} {RANDOM}",
        ),
        (
            "mismatched_is_matched",
            "`mismatched` looks at the completion itself",
            "value = self.expression(expr.arguments[0], MISMATCHED)",
            "value = self.expression(expr.arguments[0], MAIN)",
            ORACLE,
        ),
        (
            "greedy_is_sampled",
            "`greedy` reads the scores of the sampled completion",
            'return build.load(f"greedy {name}", Scope.SEQUENCE)',
            "return build.load(name, Scope.SEQUENCE)",
            ORACLE,
        ),
        (
            "old_of_demonstrations",
            "`logp_old` of a demonstration is another policy's, of a drawn completion the current one's",
            'return build.apply("choose", shown, now, build.load("logp_old", Scope.TOKEN))',
            'return build.apply("choose", shown, build.load("logp_old", Scope.TOKEN), now)',
            f"{RANDOM} {CHOICES}",
        ),
        (
            "own_is_other",
            "`own(x)` and `x` over others are the same sequence",
            'return build.emit("swapped", [build.spread(value, Scope.COMPARISON)], scope=Scope.COMPARISON)',
            "return build.spread(value, Scope.COMPARISON)",
            COMPARISONS,
        ),
        (
            "report_sums",
            "a report is a sum over the batch, not a mean",
            'return low.builder.reduce("mean", value, max(expr.scope, Scope.SEQUENCE), Scope.BATCH)',
            'return low.builder.reduce("sum", value, max(expr.scope, Scope.SEQUENCE), Scope.BATCH)',
            RANDOM,
        ),
    ),
    *_rows(
        "grolang/compiler/program.py",
        (
            "cse_merges_worlds",
            "one step for the completion and the mismatched one: common subexpressions compared without their world",
            "    scope: Scope\n    world: str\n",
            "    scope: Scope\n    world: str = field(compare=False)\n",
            ORACLE,
        ),
        (
            "wrong_branch_kept",
            "a branch whose condition is known keeps the other side",
            "return args[1] if known[0] else args[2]",
            "return args[2] if known[0] else args[1]",
            f"{RANDOM} {DEGENERATE}",
        ),
        (
            "zero_times_is_one",
            "what a 0 multiplies becomes the other factor",
            'case "multiply" | "chain" if 0.0 in known:\n                return self.number(0)',
            'case "multiply" | "chain" if 0.0 in known:\n                return args[1 - known.index(0.0)]',
            f"{RANDOM} {DEGENERATE}",
        ),
    ),
    *_rows(
        "grolang/compiler/derivative.py",
        (
            "mean_not_divided",
            "the gradient of a mean is that of a sum",
            'if step.detail[0] == "mean":',
            'if step.detail[0] == "none":',
            DERIVATIVES,
        ),
        (
            "gathered_by_mean",
            "a value that stood for many gathers the mean of their shares",
            'return build.reduce("sum", share, scope, max(target, Scope.BATCH))',
            'return build.reduce("mean", share, scope, max(target, Scope.BATCH))',
            DERIVATIVES,
        ),
        (
            "chosen_rejected_adjoints",
            "the gradient of `chosen` goes to the rejected response",
            'sign = "greater" if step.op == "chosen" else "less"',
            'sign = "less" if step.op == "chosen" else "greater"',
            DERIVATIVES,
        ),
        (
            "to_go_adjoint",
            "the gradient of `to_go` runs the wrong way",
            'build.emit("so_far", [place, step.args[1]], scope=Scope.TOKEN)',
            'build.emit("to_go", [place, step.args[1]], scope=Scope.TOKEN)',
            DERIVATIVES,
        ),
    ),
    *_rows(
        "grolang/compiler/execute.py",
        (
            "zero_advantage_times_inf",
            "0 times an infinite weight is not a number again",
            "return torch.where(a == 0, torch.zeros_like(a), a * b)",
            "return a * b",
            f"{CORNERS} {CHOICES}",
        ),
        (
            "less_at_equality",
            "`<` holds at equality",
            '"less": _truth(torch.lt),',
            '"less": _truth(torch.le),',
            f"{FUNCTIONS} {RANDOM}",
        ),
        (
            "stale_values",
            "values of the last chunk's log-probs are kept for the next",
            "for index in self.program.current:\n            self.values.pop(index, None)",
            "for index in ():\n            self.values.pop(index, None)",
            PATHS,
        ),
        (
            "padding_counts",
            "a padding row counts as a sequence",
            "rows = batch.mask.any(1).nonzero()[:, 0]",
            "rows = torch.arange(len(batch.mask), device=batch.mask.device)",
            ORACLE,
        ),
    ),
    *_rows(
        "grolang/compiler/reductions.py",
        (
            "std_swapped",
            "population and sample standard deviation swapped",
            'torch.sqrt(distance.square().sum(1) / (count if function == "std" else count - 1))',
            'torch.sqrt(distance.square().sum(1) / (count - 1 if function == "std" else count))',
            ORACLE,
        ),
        (
            "sample_std_gradient",
            "N for N - 1 in the gradient of `sample_std`",
            'divisor = out * (count if function == "std" else count - 1)',
            "divisor = out * count",
            DERIVATIVES,
        ),
        (
            "quantile_neighbour",
            "a quantile is weighted towards the wrong neighbour",
            "low + (high - low) * share)",
            "low + (high - low) * (1 - share))",
            RANDOM,
        ),
        (
            "ties_count_whole",
            "each of the tied largest values gets the whole gradient",
            "share = torch.where(best, adjoint / best.sum(1, keepdim=True), 0)",
            "share = torch.where(best, adjoint, 0)",
            f"{CHOICES} {PATHS}",
        ),
        (
            "mask_dropped",
            "a sum takes in places that are not there",
            "return torch.where(there, values, 0).sum(1)",
            "return values.sum(1)",
            ORACLE,
        ),
        (
            "to_go_off_by_one",
            "`to_go` leaves the token itself out",
            "    return table[row, position]\n",
            "    return F.pad(table, (0, 1))[row, position + 1]\n",
            f"{ORACLE} {RANDOM}",
        ),
    ),
    *_rows(
        "grolang/compiler/layout.py",
        (
            "chosen_is_rejected",
            "`chosen` and `rejected` swapped",
            'return chosen if op == "chosen" else rejected',
            'return rejected if op == "chosen" else chosen',
            RANDOM,
        ),
        (
            "opposite_is_own",
            "`opposite` is the response itself",
            "return torch.where(label > 0, rejected[group], chosen[group])",
            "return torch.where(label > 0, chosen[group], rejected[group])",
            ORACLE,
        ),
        (
            "others_with_self",
            "`over others` takes the sequence itself in",
            "present = present & (mates != torch.arange(mates.shape[0], device=mates.device)[:, None])",
            "present = present & (mates >= 0)",
            ORACLE,
        ),
        (
            "groups_mixed",
            "sequences are counted to another group",
            "return ids, index\n",
            "return ids, index.flip(0)\n",
            ORACLE,
        ),
        (
            "last_token_missed",
            "the last token of a completion is the one before it",
            "return self.position == self.lengths[self.places[0]] - 1",
            "return self.position == self.lengths[self.places[0]] - 2",
            f"{ORACLE} {RANDOM}",
        ),
        (
            "position_is_slot",
            "`position` counts slots, holes of the mask included",
            "return (self.mask.long().cumsum(1) - 1)[self.places]",
            "return self.places[1]",
            RANDOM,
        ),
    ),
    *_rows(
        "grolang/compiler/needs.py",
        (
            "others_need_less",
            "a leave-one-out value is thought to be known from its own sequence",
            "joint = Scope.GROUP if step.others else _parent(program, index)",
            "joint = _parent(program, index)",
            f"{RANDOM} {FUSED} {COMPARISONS}",
        ),
        (
            "greedy_not_needed",
            "no greedy completion is drawn for a method that asks for one",
            'greedy=any(name.startswith("greedy ") for name in names),',
            "greedy=False,",
            RANDOM,
        ),
    ),
    *_rows(
        "grolang/compiler/factor.py",
        (
            "label_has_no_sign",
            "the label is taken for one number of its pair",
            'return -1 if step.detail[0] == "label" else None',
            'return 1 if step.detail[0] == "label" else None',
            SCHEDULES,
        ),
        (
            "sums_factor",
            "a sum of two products is thought to factor whatever their weights",
            "return _Product(scale, left.weight) if left.weight == right.weight else None",
            "return _Product(scale, left.weight)",
            SCHEDULES,
        ),
    ),
    *_rows(
        "grolang/compiler/on_policy.py",
        (
            "old_is_reference",
            "in the first update `logp_old` is the reference",
            'return build.load("logp", step.scope, step.world)',
            'return build.load("logp_ref", step.scope, step.world)',
            SCHEDULES,
        ),
    ),
    *_rows(
        "grolang/compiler/module.py",
        (
            "tokens_out_of_order",
            "gradients of tokens that were sorted by group are not put back in their places",
            "whole.flatten(0, 1).index_copy_(0, slots, made.hidden)",
            "whole.flatten(0, 1).index_copy_(0, slots.sort()[0], made.hidden)",
            f"{PATHS} {FUSED}",
        ),
    ),
    *_rows(
        "grolang/compiler/fused/head.py",
        (
            "temperature_ignored",
            "the temperature is not in the logits' slope",
            "return self.scale / self.temperature",
            "return self.scale",
            FUSED,
        ),
        (
            "softcap_without_temperature",
            "under a softcap the temperature is ignored",
            "out.mul_(head.softcap / head.temperature)",
            "out.mul_(head.softcap)",
            FUSED,
        ),
    ),
    *_rows(
        "grolang/compiler/fused/recompute.py",
        (
            "head_gradient_of_wrong_chunk",
            "each tile's gradient goes to the first rows of the head",
            "multiply(sums.weight[columns], operand.T, scaled",
            "multiply(sums.weight[: columns.stop - columns.start], operand.T, scaled",
            FUSED,
        ),
        (
            "recomputed_rows_over_each_other",
            "rows of a recomputed tile are apart by one number less than they are long",
            "stride = shape[1] + gap(buffer, shape[1])",
            "stride = shape[1] + gap(buffer, shape[1]) - 1",
            FUSED,
        ),
    ),
    *_rows(
        "grolang/compiler/fused/sweep.py",
        (
            "accumulated_twice",
            "what earlier chunks gave the head is doubled by the next",
            "multiply(sums.weight, operand.T, scaled, alpha=self.head.gain, beta=1.0, rounded=True)",
            "multiply(sums.weight, operand.T, scaled, alpha=self.head.gain, beta=2.0, rounded=True)",
            FUSED,
        ),
        (
            "bias_without_gain",
            "the bias's gradient without the head's scale",
            "out.addmv_(tile.T, c, alpha=head.gain)",
            "out.addmv_(tile.T, c)",
            FUSED,
        ),
        (
            "negative_rows_dropped",
            "rows with a negative coefficient are dropped",
            "order = compact(coefficients != 0, found)",
            "order = compact(coefficients > 0, found)",
            FUSED,
        ),
        (
            "softmax_never_normalised",
            "coefficients of unnormalised errors are not divided by the sum",
            "c = coefficients[order] / self.total[places]",
            "c = coefficients[order]",
            FUSED,
        ),
    ),
    *_rows(
        "grolang/compiler/fused/rows.py",
        (
            "one_hot_forgotten",
            "the error of the target's own logit is p, not p - 1",
            "missing = (torch.expm1(own) * total).unsqueeze(1)",
            "missing = (torch.exp(own) * total).unsqueeze(1)",
            FUSED,
        ),
        (
            "one_hot_not_of_the_total",
            "the one-hot part of an error is normalised, its softmax is not",
            "missing = (torch.expm1(own) * total).unsqueeze(1)",
            "missing = torch.expm1(own).unsqueeze(1)",
            FUSED,
        ),
        (
            "entropy_sign",
            "the entropy is negative",
            "spread = log_total - LN2 * moment / total if entropy else None",
            "spread = LN2 * moment / total - log_total if entropy else None",
            FUSED,
        ),
    ),
    *_rows(
        "grolang/compiler/fused/factored.py",
        (
            "scratch_not_scaled",
            "a streamed unit's head gradient is not scaled",
            "one.add_(part, alpha=s)",
            "one.add_(part)",
            FUSED,
        ),
    ),
    *_rows(
        "grolang/compiler/fused/attach.py",
        (
            "upstream_ignored",
            "the gradient that comes from above is ignored",
            "grad.mul_(upstream).to(dtype)",
            "grad.to(dtype)",
            FUSED,
        ),
    ),
    *_rows(
        "grolang/language/functions.py",
        (
            "sigmoid_derivative",
            "the derivative of the sigmoid is the sigmoid",
            '_rising("sigmoid", _sigmoid, "out * sigmoid(-x)", ',
            '_rising("sigmoid", _sigmoid, "out", ',
            FUNCTIONS,
        ),
        (
            "clip_bounds_swapped",
            "`clip` lets the gradient through outside of its bounds",
            '"1 if lo <= x <= hi else 0"',
            '"1 if x <= lo or hi <= x else 0"',
            FUNCTIONS,
        ),
        (
            "min_tie",
            "at a tie `min` gives nothing to its first argument",
            '("1 if a < b else 0.5 if a == b else 0", "1 if b < a else 0.5 if a == b else 0")',
            '("1 if a < b else 0", "1 if b < a else 0.5 if a == b else 0")',
            f"{FUNCTIONS} {CHOICES}",
        ),
        (
            "relu_at_zero",
            "`relu` has slope 1 at 0",
            '("1 if x > 0 else 0",),',
            '("1 if x >= 0 else 0",),',
            f"{FUNCTIONS} {CHOICES}",
        ),
    ),
    *_rows(
        "grolang/language/intervals.py",
        (
            "open_ends_swapped",
            "the negative of a range has its open end on the wrong side",
            "return Interval(-a.high, -a.low, a.high_open, a.low_open)",
            "return Interval(-a.high, -a.low, a.low_open, a.high_open)",
            f"{FUNCTIONS} {GOLDEN}",
        ),
    ),
    *_rows(
        "grolang/language/functions.py",
        (
            "condition_too_strong",
            "where `a < b` fails, a > b is believed",
            '"less": "greater_equal",',
            '"less": "greater",',
            GOLDEN,
        ),
    ),
    *_rows(
        "grolang/language/analysis.py",
        (
            "falling_upsilon_passes",
            "υ is refuted where it rises",
            "if last is not None and y < last[1] - 1e-12",
            "if last is not None and y > last[1] + 1e-12",
            GOLDEN,
        ),
        (
            "others_are_biased",
            "a leave-one-out baseline is called biased, a group's mean is not",
            'return (cross, own or cross) if expr.axis == "others" else (own or cross, own or cross)',
            'return (own, cross) if expr.axis == "others" else (cross, own or cross)',
            GOLDEN,
        ),
    ),
    *_rows(
        "grolang/language/declarations.py",
        (
            "parent_wins",
            "a statement of the parent beats the file's own",
            'found.table |= {key: statement for key, statement in own.items() if key[0] != "law"}',
            'found.table = {key: statement for key, statement in own.items() if key[0] != "law"} | found.table',
            "methods/dapo.gro methods/dr_grpo.gro",
        ),
    ),
    *_rows(
        "grolang/laws/proof.py",
        (
            "min_proved_as_max",
            "the prover takes `min` for `max`",
            'made = Function(f"{step.op} {detail} {step.scope.word} {step.world}", real=True)(*arguments)',
            "made = Function(f\"{step.op.replace('min', 'max')} {detail} {step.scope.word} {step.world}\")(*arguments)",
            PROOFS,
        ),
        (
            "prover_forgets_shifts",
            "the prover forgets what is added to all values of a maximum",
            'return named if step.detail[0] in ("std", "sample_std") else named + shift',
            "return named",
            PROOFS,
        ),
        (
            "opposite_label_alike",
            "the prover gives both responses of a pair one label",
            'return -self._atom("label", step.scope) if away else self._atom("label", step.scope)',
            'return self._atom("label", step.scope)',
            PROOFS,
        ),
        (
            "prover_counts_self",
            "the prover divides a leave-one-out mean by the whole group",
            'return total / (count - own_count) if function == "mean" else total',
            'return total / count if function == "mean" else total',
            PROOFS,
        ),
    ),
    *_rows(
        "grolang/laws/claims.py",
        (
            "laws_agree_loosely",
            "coefficients that differ by a tenth are called equal",
            "TOLERANCE = 1e-9",
            "TOLERANCE = 1e-1",
            CLAIMS,
        ),
        (
            "negative_factor_is_proportional",
            "a negative factor counts as proportional",
            "return bool(a / b > 0) and agree(left, right * (a / b))",
            "return agree(left, right * (a / b))",
            CLAIMS,
        ),
    ),
    *_rows(
        "grolang/language/ir.py",
        (
            "penalty_skips_wrong_steps",
            "a penalty takes a step over an axis that it does not have",
            "if scope > after:",
            "if scope >= after:",
            f"{ORACLE} {RANDOM}",
        ),
        (
            "losses_summed",
            "a loss per sequence is summed, not averaged",
            'Step(function="mean", axis=axis, span=self.body.span)',
            'Step(function="sum", axis=axis, span=self.body.span)',
            f"methods/kto.gro {CLAIMS}",
        ),
    ),
    *_rows(
        "grolang/laws/unbiased.py",
        (
            "expectation_unweighted",
            "the expected estimate weighs every draw alike",
            "expected += chances[list(drawn)].prod() * gradient",
            "expected += gradient / 49",
            "methods/rloo.gro methods/remax.gro",
        ),
    ),
    *_rows(
        "grolang/laws/terms.py",
        (
            "clip_lifted_wrong",
            "a lifted clip holds on the wrong side",
            'past = algebra.apply("greater", x, high), algebra.apply("less", x, low)',
            'past = algebra.apply("less", x, low), algebra.apply("greater", x, high)',
            f"{LIFT}::test_the_losses_of_the_field_have_the_form",
        ),
    ),
    *_rows(
        "runtime/passes.py",
        (
            "micro_batches_averaged",
            "the gradients of micro-batches are averaged, not summed",
            "(loss * scale).backward()",
            "(loss * scale / self.micro_batch).backward()",
            EXACT,
        ),
    ),
    *_rows(
        "runtime/step.py",
        (
            "crossed_with_itself",
            "the mismatched completion is the row's own",
            "other = step.samples[(row + 1) % len(step.samples)].completion",
            "other = step.samples[row].completion",
            EXACT,
        ),
    ),
    *_rows(
        "runtime/sequences.py",
        (
            "old_policy_renewed",
            "`logp_old` is taken anew at every update",
            "if batch.logp_old is None:\n            batch =",
            "if True:\n            batch =",
            EXACT,
        ),
    ),
    *_rows(
        "runtime/split.py",
        (
            "groups_cut",
            "a group that was cut counts as whole",
            "whole = all(len(unit) <= micro_batch for unit in units)\n    if not whole:",
            "whole = True\n    if any(len(unit) > micro_batch for unit in units):",
            EXACT,
        ),
    ),
    *_rows(
        "runtime/policy.py",
        (
            "hidden_not_shifted",
            "a token is predicted from its own hidden state",
            "found = states[:, :-1][predicts]",
            "found = states[:, 1:][predicts]",
            EXACT,
        ),
        (
            "first_token_missed",
            "the first token of a completion is not trained",
            "target[row, len(prompt) : len(own)] = 1",
            "target[row, len(prompt) + 1 : len(own)] = 1",
            EXACT,
        ),
    ),
    *_rows(
        "runtime/packing.py",
        (
            "shared_whatever_it_is",
            "a packed sequence takes another's beginning for its own",
            "same = next((at for at in range(ends) if own[at] != other[at]), ends)",
            "same = ends",
            PACKING,
        ),
        (
            "positions_restart",
            "in a packed row a completion begins at position 0",
            "positions += range(same, len(own))",
            "positions += range(len(own) - same)",
            PACKING,
        ),
        (
            "window_forgotten",
            "packed rows pass through attention without the mask that the model asks for",
            "inner(module, *inputs, mask, *args, **options)",
            "inner(module, *inputs, None, *args, **options)",
            PACKING,
        ),
        (
            "ends_see_ahead",
            "in a packed row the end of a sequence looks at the tokens after it",
            "torch.arange(keys, device=positions.device) <= positions[..., None]",
            "torch.arange(keys, device=positions.device) <= keys + positions[..., None]",
            PACKING,
        ),
        (
            "ends_take_the_first_row",
            "in a packed row the end of a sequence goes under the mask of its beginning",
            "mask[0][:, positions, :keys]",
            "mask[0][:, positions * 0, :keys]",
            PACKING,
        ),
        (
            "leaks_not_looked_for",
            "no one looks whether a token reaches another sequence",
            "if error <= rounding * matters and float(leaks.max()) <= LEAK * float(row.norm(dim=-1).mean()):",
            "if error <= rounding * matters:",
            PACKING,
        ),
    ),
    *_rows(
        "runtime/sampling.py",
        (
            "sampled_without_temperature",
            "sampling ignores the temperature",
            "scores = logits.float() / how.temperature",
            "scores = logits.float()",
            SAMPLING,
        ),
        (
            "log_probs_of_another",
            "the sampler reports the log-probs of the likeliest tokens, not of those that it drew",
            "scores.log_softmax(-1).gather(1, token)",
            "scores.log_softmax(-1).gather(1, scores.argmax(-1, keepdim=True))",
            f"{SAMPLING} {EXACT}",
        ),
        (
            "end_token_cut",
            "a completion loses its end token",
            "end = next((place + 1 for place, token in enumerate(ids) if token in ends), None)",
            "end = next((place for place, token in enumerate(ids) if token in ends), None)",
            SAMPLING,
        ),
        (
            "top_p_ignored",
            "top-p is ignored",
            "if self.top_p < 1:",
            "if self.top_p > 1:",
            SAMPLING,
        ),
        (
            "stop_goes_on",
            "what is drawn after a stop stays in the completion",
            "length = min((one for one in (end, stop) if one is not None), default=None)",
            "length = end",
            SAMPLING,
        ),
        (
            "same_number_at_every_place",
            "every token of a completion is drawn with the same number",
            "(torch.as_tensor(place, device=keys.device) + 1) * GOLDEN",
            "GOLDEN",
            SAMPLING,
        ),
    ),
    *_rows(
        "runtime/decoding.py",
        (
            "room_copied_crosswise",
            "keys and values change places where their memory grows",
            "own[0][:, :, :start], own[1][:, :, :start] = self.keys, self.values",
            "own[0][:, :, :start], own[1][:, :, :start] = self.values, self.keys",
            DECODING,
        ),
        (
            "padding_attended",
            "a token that was drawn attends to the padding in front of its prompt",
            "return mask[:, None, None] > 0 if",
            "return mask[:, None, None] >= 0 if",
            DECODING,
        ),
        (
            "window_of_one_query_forgotten",
            "a token that was drawn attends to all that came before it, whatever window or state its layers have",
            "whole = all(type(layer) is make for layer in self.cache.layers)",
            "whole = True",
            DECODING,
        ),
        (
            "padding_has_positions",
            "positions count the padding in front of a prompt",
            "(self.attention[:, : self.seen].cumsum(1) - 1).clamp_(min=0)",
            "torch.ones_like(self.attention[:, : self.seen]).cumsum(1) - 1",
            DECODING,
        ),
        (
            "left_with_the_wrong_padding",
            "a sequence that stays takes the padding of one that left",
            "self.attention, self.positions = self.attention[rows], self.positions[rows]",
            "self.attention, self.positions = self.attention[: len(rows)], self.positions[rows]",
            DECODING,
        ),
    ),
    *_rows(
        "runtime/shared_prompts.py",
        (
            "shared_padding_attended",
            "a token that was drawn attends to the padding in front of a prompt that is kept once",
            "masked_fill_(~shown, -torch.inf)",
            "masked_fill_(~shown, 0.0)",
            SHARED,
        ),
        (
            "prompt_of_another",
            "where a prompt's completions have all ended, what goes on reads another's",
            "(keys[left], values[left])",
            "(keys[: len(left)], values[: len(left)])",
            SHARED,
        ),
        (
            "cap_of_shared_prompts_forgotten",
            "a model that asks its attention for more than softmax has its prompts kept once",
            "attention_mask is not prompts.mask or any(",
            "attention_mask is not prompts.mask and any(",
            SHARED,
        ),
        (
            "heads_in_another_order",
            "of heads that read the same keys, each gets what another asked for",
            "(own[self.at], 0, (-1, self.most)).transpose(1, 2).flatten(2, 3)",
            "(own[self.at], 0, (-1, self.most)).permute(0, 2, 3, 1, 4).flatten(2, 3)",
            SHARED,
        ),
    ),
    *_rows(
        "runtime/prepacked.py",
        (
            "packed_without_bias",
            "a map whose weight is laid out for the CPU forgets its bias",
            "_packed(layer.weight.detach()), layer.bias)",
            "_packed(layer.weight.detach()), None)",
            PREPACKED,
        ),
        (
            "packed_in_half_precision",
            "where products are of bf16, those of laid-out weights are not",
            "_works() and not torch.is_autocast_enabled",
            "_works() or torch.is_autocast_enabled",
            PREPACKED,
        ),
        (
            "packed_for_ever",
            "layers keep a copy of their weight where a later one could not be made",
            """layers:
            layer.__dict__.pop("forward", None)""",
            """layers[:2]:
            layer.__dict__.pop("forward", None)""",
            PREPACKED,
        ),
    ),
    *_rows(
        "runtime/engines.py",
        (
            "weights_stay_behind",
            "an engine draws with the weights that it began with",
            "return now != before",
            "return not before",
            ENGINES,
        ),
        (
            "adapter_left_out",
            "the adapter is left out of the weights that are handed over",
            'yield f"{name}.weight", weight + delta',
            'yield f"{name}.weight", weight',
            ENGINES,
        ),
    ),
    *_rows(
        "runtime/rollout.py",
        (
            "greedy_drawn",
            "the greedy completion is a sampled one",
            "ids += [one.ids for one in self.complete([example.prompt for example in examples], None)]",
            "ids += [one.ids for one in self.complete([example.prompt for example in examples], range(len(examples)))]",
            SAMPLES,
        ),
        (
            "draws_repeat",
            "every step draws with the numbers of the first: the sampler's state is lost",
            'keys = [key(self.seed, "draw", number, at, k)',
            'keys = [key(self.seed, "draw", at, k)',
            SAMPLES,
        ),
        (
            "demonstrations_unmarked",
            "a demonstration in a group passes for a drawn completion",
            "samples.append(Sample(example.prompt, shown, at, demonstration=1.0))",
            "samples.append(Sample(example.prompt, shown, at))",
            f"{RUN} {EXACT} {DATA}",
        ),
        (
            "recorded_lost",
            "the log-probs that rows bring with them are not read",
            "scores=one.scores, logp_old=values)",
            "scores=one.scores)",
            FEED,
        ),
    ),
    *_rows(
        "runtime/feed.py",
        (
            "weights_of_files_ignored",
            "every file gives as many rows, whatever its weight",
            "np.cumsum(np.array(self.weights) / sum(self.weights))",
            "np.cumsum(np.ones(len(self.weights)) / len(self.weights))",
            FEED,
        ),
        (
            "past_without_age",
            "groups of earlier steps count as drawn by the policy of now",
            "tuple(values[: len(sample.completion)]) if self.old and not sample.demonstration else ()",
            "()",
            FEED,
        ),
        (
            "past_lost",
            "a resumed run has forgotten the groups of earlier steps",
            'if not (folder / "past.json").is_file():',
            "if True:",
            FEED,
        ),
    ),
    *_rows(
        "runtime/checkpoints.py",
        (
            "generators_lost",
            "a resumed run has fresh random generators",
            "one for name, one in generators.items() if name.startswith(own)",
            "one for name, one in _generators().items() if name.startswith(own)",
            RUN,
        ),
        (
            "optimizer_lost",
            "a resumed run has a fresh optimizer",
            "        descent.optimizer.load_state_dict(state)\n",
            "",
            RUN,
        ),
    ),
    *_rows(
        "runtime/descent.py",
        (
            "warmup_from_zero",
            "the first step of a warm-up has rate 0",
            "return settings.lr * (step + 1) / warmup",
            "return settings.lr * step / warmup",
            DESCENT,
        ),
    ),
    *_rows(
        "runtime/examples.py",
        (
            "epoch_starts_over",
            "every step of an epoch takes its first rows",
            "found += permutation[place : place + size - len(found)]",
            "found += permutation[: size - len(found)]",
            DATA,
        ),
        (
            "held_out_prompts_trained",
            "a held-out prompt stays among the rows that are trained on",
            "if self.asked(number) not in prompts]",
            "if all(number not in part.kept for part in held)]",
            DATA,
        ),
    ),
    *_rows(
        "runtime/verifiers.py",
        (
            "first_number_counts",
            "the first number of a solution is its answer",
            "number = Decimal(found[0 if len(after) > 1 else -1]",
            "number = Decimal(found[0]",
            SCORES,
        ),
    ),
    *_rows(
        "runtime/metrics.py",
        (
            "kl_of_the_reference",
            "the divergence has its gap the wrong way round",
            "gap = reference - logp\n",
            "gap = logp - reference\n",
            METRICS,
        ),
    ),
    *_rows(
        "runtime/evaluation.py",
        (
            "pass_at_k",
            "pass@k counts the draws one off",
            "value * math.comb(at, k - 1) for at, value",
            "value * math.comb(at, k) for at, value",
            EVALUATION,
        ),
    ),
    *_rows(
        "methods/dpo.gro",
        (
            "dpo_sigmoid",
            "DPO pushes most where the pair is in order",
            "beta * sigmoid(-z)",
            "beta * sigmoid(z)",
            ORACLE,
        ),
    ),
    *_rows(
        "methods/grpo.gro",
        (
            "grpo_clip_swapped",
            "GRPO's clip holds on the wrong side",
            "omega(z)  = 0 if (exp(z) > 1 + epsilon if advantage > 0 else exp(z) < 1 - epsilon) else exp(z)",
            "omega(z)  = 0 if (exp(z) > 1 + epsilon if advantage < 0 else exp(z) < 1 - epsilon) else exp(z)",
            ORACLE,
        ),
        (
            "grpo_sample_std",
            "GRPO divides by the sample's standard deviation",
            "= std(reward over group)",
            "= sample_std(reward over group)",
            ORACLE,
        ),
    ),
    *_rows(
        "methods/rloo.gro",
        (
            "rloo_with_self",
            "RLOO's baseline takes the sample's own reward in",
            "baseline  = mean(reward over others)",
            "baseline  = mean(reward over group)",
            f"{ORACLE} methods/rloo.gro",
        ),
    ),
    *_rows(
        "methods/kto.gro",
        (
            "kto_weights_swapped",
            "KTO weighs good completions as bad ones",
            "weight    = desirable if label > 0 else undesirable",
            "weight    = undesirable if label > 0 else desirable",
            f"{ORACLE} methods/kto.gro",
        ),
    ),
    *_rows(
        "methods/dapo.gro",
        (
            "dapo_mean_per_sequence",
            "DAPO averages each completion first",
            "aggregate = mean over batch\n",
            "aggregate = mean over tokens, mean over sequences\n",
            "methods/dapo.gro",
        ),
    ),
    *_rows(
        "methods/ipo.gro",
        (
            "ipo_target",
            "IPO's margin is twice the published one",
            "omega(z)  = 2 * (1 / (2 * beta) - z)",
            "omega(z)  = 2 * (1 / beta - z)",
            "methods/ipo.gro",
        ),
    ),
    *_rows(
        "methods/cpl.gro",
        (
            "cpl_discount_off_by_one",
            "CPL's discount starts at the first token",
            "credit    = gamma ^ position",
            "credit    = gamma ^ (position + 1)",
            ORACLE,
        ),
    ),
    *_rows(
        "methods/simpo.gro",
        (
            "simpo_margin_sign",
            "SimPO's target margin has the wrong sign",
            "omega(z)  = beta * sigmoid(gamma - z)",
            "omega(z)  = beta * sigmoid(-gamma - z)",
            "methods/simpo.gro",
        ),
    ),
)
