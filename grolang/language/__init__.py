"""Text to checked IR. Nothing in this room imports torch.

In the order to read: `source`, `syntax` (text to trees); `scopes`, `intervals`, `functions` (the tables), `components`;
`ir`; `declarations`, `expressions` with `misuse`, `aggregation`, `parameters`, `claims`, which `checker` joins;
`verify`; `facts`, `analysis`, `usage`. Beside them `diagnostics`, `findings`, `codes`, `habits` (errors), `library`
(methods by name), `formatter`, `difference`, and `tables` (the parser's).
"""
