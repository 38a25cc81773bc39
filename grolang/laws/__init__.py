"""Claims that can be tested: laws, equivalences, and the batches on which they are tried.

In the order to read: `claims` (a law as two outputs of one program), `strategies`, `smaller` (batches), `proof`,
`equivalence`, `unbiased`, `check`, `own` (a loss in PyTorch), `show`, `plugin` (pytest). From a loss to its method:
`question`, `book` (what symbols stand for), `algebra`, `terms`, `push` (of one row), `pairs`, `parts`, `spelling` (back
to text), `draft`, `lift`.
"""
