"""The grammar of the language, `gro.lark`, as package data."""
