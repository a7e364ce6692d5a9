"""Stands in for PyTorch in tests of LMCache's worker code.

LMCache's modules name torch's types in annotations, defaults and base classes
as they are loaded; the worker, its message sender and the token database
compute nothing with them. So every name of torch, and of any module below it,
is a type that can be called, subscripted, joined by | and derived from.
"""

import importlib.abc
import importlib.machinery
import sys
import types


class _Meta(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _named(name)

    def __getitem__(cls, item):
        return cls

    def __or__(cls, other):
        return cls

    __ror__ = __or__


class _Anything(metaclass=_Meta):
    """Called with one function only, it is a decorator that does nothing."""

    def __new__(cls, *args, **kwargs):
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType):
            return args[0]
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return type(self)(*args, **kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _named(name)

    def __bool__(self):
        return False  # torch.cuda.is_available() and the like

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


_types = {}


def _named(name):
    # One type per name, so that they are equal and can be keys.
    if name not in _types:
        _types[name] = _Meta(name, (_Anything,), {})
    return _types[name]


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _named(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(__name__ + "."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


__path__ = []
__version__ = "2.8.0"
sys.modules[__name__].__class__ = _Module
sys.meta_path.append(_Finder())
