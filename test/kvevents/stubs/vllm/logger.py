"""Stands in for vLLM's own, which sets up the whole of vLLM."""

import logging


def init_logger(name):
    return logging.getLogger(name)
