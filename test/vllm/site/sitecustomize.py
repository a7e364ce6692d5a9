"""Python runs this at start where its folder is on PYTHONPATH.

LMCache copies KV bytes between the engine and its own memory with kernels for
GPUs. On a CPU its own stand-in for tests takes their place: keys, chunks,
stores, lookups and reports to the controller are LMCache's real code, only no
bytes move.
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader

MODULE = "lmcache.v1.gpu_connector"


class Loader(SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)

        def create(_config, metadata, *_args, **_kwargs):
            from lmcache.v1.gpu_connector.mock_gpu_connector import MockGPUConnector

            return MockGPUConnector(kv_shape=metadata.kv_shape)

        module.CreateGPUConnector = create


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, Finder)
