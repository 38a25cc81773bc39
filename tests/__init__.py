"""Tests. `oracle` imports nothing from grolang; `laws` compares the two."""
