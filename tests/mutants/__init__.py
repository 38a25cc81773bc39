"""Seeded faults, and the command that shows that the suite finds each: `python tests/mutants/run.py`."""
