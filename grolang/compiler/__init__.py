"""IR to numbers.

`program`, `lowering`, `derivative` and `needs` are plain Python: a method becomes a straight list of tensor steps.
`layout`, `execute`, `batch`, `method`, `module` and `fused` run such a list with torch.
"""
