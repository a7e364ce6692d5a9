"""Stands in for vLLM's own, which needs more packages: the hash functions by
their names, as in vLLM 0.32."""

import hashlib
import pickle


def sha256(value):
    return hashlib.sha256(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)).digest()


def get_hash_fn_by_name(name):
    if name == "sha256":
        return sha256
    raise ValueError(f"Unsupported hash function: {name}")
