"""Imported before LMCache, keeps out what would phone home, and what moves bytes
on a device, which cannot be loaded without PyTorch and is not called here."""

import enum
import sys
import types

for name in ("lmcache.usage_context", "lmcache.usage_telemetry"):
    usage = types.ModuleType(name)
    usage.ContinuousUsageContext = usage.InitializeUsageContext = lambda *args, **kwargs: None
    sys.modules[name] = usage

import torch  # the stub, of which everything has every name

import lmcache


class DeviceOps(torch.DeviceOps):
    drain_recorded_events = list  # there are none


lmcache.device_ops = DeviceOps

native = types.ModuleType("lmcache.lmcache_native")
native.__getattr__ = lambda name: getattr(torch, name)
sys.modules[native.__name__] = native
native.TransferDirection = enum.IntEnum("TransferDirection", "H2D D2H")
