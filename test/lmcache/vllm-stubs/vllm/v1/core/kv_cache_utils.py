"""Stands in for vLLM's own, which needs PyTorch: what is before the first
block, as in vLLM 0.10 and later with PYTHONHASHSEED set."""

import os

NONE_HASH = None


def init_none_hash(hash_fn):
    global NONE_HASH
    NONE_HASH = hash_fn(os.environ["PYTHONHASHSEED"])
