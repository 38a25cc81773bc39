"""The manual, run."""
