"""Stands in for transformers: the token database imports its tokenizer and,
for whole token ids, never calls it."""


class AutoTokenizer:
    pass
