"""Laws: properties that hold for every batch and every method, compared with the oracle."""
