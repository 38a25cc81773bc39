"""IR to numbers.

In the order to read: `program`, `lowering`, `derivative`, `on_policy`, `verify` (a method becomes a straight list of
tensor steps); `needs`, `factor`, `schedule` (what is read off it): all plain Python. Then, with torch, `batch`,
`layout`, `reductions`, `execute` (the list on a batch), `dead`, `blame`, `method`; `fused`, `forming`, `module`,
`operator` (from hidden states). `kernel` writes Triton, `emit` and `standalone` Python, `index` the list of methods.
"""
