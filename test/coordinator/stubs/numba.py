"""Stands in for numba: LMCache compiles loops with it that these tests run as
plain Python, if at all."""


def njit(*args, **kwargs):
    return lambda function: function
