"""Stands in for vLLM's own, which needs PyTorch: the type of a block's hash."""

ExternalBlockHash = bytes | int
