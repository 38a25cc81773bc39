"""Claims that can be tested: laws, equivalences, and the batches on which they are tried."""
