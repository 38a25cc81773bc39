"""Every method on the embedded model, several seeds: the README's table.

    python benchmarks/methods.py [METHOD …] [--seeds 3] [--rows 500] [--workers 2]

Each run is `grolang run METHOD --seed N --eval-rows ROWS` in a process of its own on one core; all else is the
defaults. Accuracy is on held-out prompts, sampled at temperature 1 and greedy. Results go to
benchmarks/methods.json as they come, and a run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

METHODS = ("kto", "grpo", "dpo", "rloo", "reinforce", "remax", "reinforce_pp", "cpl", "awr", "gro", "sft")
RESULTS = Path(__file__).parent / "methods.json"


def measure(method: str, seed: int, rows: int) -> dict[str, Any]:
    """One run: accuracies before and after."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        words = ["run", method, "--seed", str(seed), "--eval-rows", str(rows), "--output", str(output)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "grolang", *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"grolang {' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
        found = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    return {"method": method, "seed": seed, "rows": rows, **found}


def accuracy(found: dict[str, float], way: str) -> float:
    """The held-out score, sampled or greedy, whatever the method calls it."""
    return next(value for name, value in found.items() if name.endswith(f"/{way}"))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: the mean over seeds, in points, and the worst seed's change."""
    lines = [
        "| method | seeds | sampled | gain (worst seed) | greedy | change (worst seed) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in METHODS:
        own = [result for result in results if result["method"] == method]
        if not own:
            continue
        cells = [f"`{method}`", str(len(own))]
        for way in ("sampled", "greedy"):
            before = [100 * accuracy(result["before"], way) for result in own]
            after = [100 * accuracy(result["after"], way) for result in own]
            change = [b - a for a, b in zip(before, after)]
            cells.append(f"{statistics.mean(before):.1f} → {statistics.mean(after):.1f}")
            cells.append(f"{statistics.mean(change):+.1f} ({min(change):+.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    told = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    done = {(result["method"], result["seed"], result["rows"]) for result in results}
    wanted = [(method, seed, told.rows) for seed in range(told.seeds) for method in told.methods]
    with ThreadPoolExecutor(told.workers) as pool:
        for result in pool.map(lambda job: measure(*job), [job for job in wanted if job not in done]):
            results.append(result)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"{result['method']} seed {result['seed']}\n")
            sys.stdout.flush()
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
