"""How long the front end takes, as ratios in one run: `python benchmarks/check.py [RUNS]`.

CPU seconds of whole processes, minimum over interleaved runs, after one that writes the bytecode: `python -c "import
lark, pydantic"`, the commands that import no torch, and a check of the text that takes longest of all within the
limits: 1,900 lines, each with a name that nothing declares.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = {
    'python -c "import lark, pydantic"': ["-c", "import lark, pydantic"],
    "grolang check methods/dpo.gro": ["-m", "grolang", "check", "dpo"],
    "grolang check methods/": ["-m", "grolang", "check", "methods"],
    "grolang list": ["-m", "grolang", "list"],
    "grolang fmt --check methods/dpo.gro": ["-m", "grolang", "fmt", "--check", "methods/dpo.gro"],
    "grolang show dpo": ["-m", "grolang", "show", "dpo"],
    "grolang show dpo --stage facts": ["-m", "grolang", "show", "dpo", "--stage", "facts"],
    "grolang show dpo --stage needs": ["-m", "grolang", "show", "dpo", "--stage", "needs"],
}


SLOWEST = "method m\ndata prompts\nreward = 1\n" + "\n".join(f"x{n} = unknown{n}" for n in range(1900)) + "\n"


def seconds(words: list[str], expected: int = 0) -> float:
    """CPU seconds of one process that exits with this status, its own and the system's for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    status = subprocess.run([sys.executable, *words], check=False, capture_output=True, env=environment).returncode
    if status != expected:
        raise SystemExit(f"`python {' '.join(words)}` exits with {status}, not {expected}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder:
        slowest = Path(folder, "slowest.gro")
        slowest.write_text(SLOWEST)
        commands = {name: (words, 0) for name, words in COMMANDS.items()}
        commands["grolang check slowest.gro"] = ["-m", "grolang", "check", str(slowest)], 1
        for words, status in commands.values():
            seconds(words, status)
        best = dict.fromkeys(commands, float("inf"))
        for _ in range(runs):
            for name, (words, status) in commands.items():
                best[name] = min(best[name], seconds(words, status))
    base = next(iter(best.values()))
    sys.stdout.write("| command | CPU seconds | ratio |\n| --- | --- | --- |\n")
    for name, value in best.items():
        sys.stdout.write(f"| `{name}` | {value:.3f} | {value / base:.2f} |\n")


if __name__ == "__main__":
    main()
