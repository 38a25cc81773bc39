"""The audit: its comparison here, its verdicts where the peers are installed."""
