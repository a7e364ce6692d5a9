"""The reporting half of one LMCache server, driven by JSON lines: its event bus,
the subscriber that makes reports of the events, the sink that posts them, and
the registration with heartbeats. What is not LMCache's here: the storage that
would publish the events.

Usage: server.py URL INSTANCE MODEL WORLD_SIZE. Reads one JSON command a line from
stdin and answers each with one JSON line on stdout, once its report is
delivered; ends when stdin does. Commands, by "do":
  store   {tokens, salt, tier, shared, ranks}: as a server that has computed them
  evict   {tokens, salt, tier, shared}
  access  {tokens, salt}
"""

import asyncio
import json
import os
import sys
import threading
import time

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import httpx
import spared  # noqa: F401

from lmcache.v1.distributed.api import L1BackendType
from lmcache.v1.distributed.internal_api import L1ObjectMeta
from lmcache.v1.mp_coordinator.cache_events import CacheEventSubscriber, HttpCacheEventSink
from lmcache.v1.mp_coordinator.registrar import keep_registered
from lmcache.v1.mp_observability.event import Event, EventType
from lmcache.v1.mp_observability.event_bus import EventBus, EventBusConfig
from lmcache.v1.multiprocess.cache_control.key_resolver import resolve_object_keys
from lmcache.v1.multiprocess.token_hasher import TokenHasher

url, instance, model, world_size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
CHUNK = 256
hasher = TokenHasher(CHUNK, "blake3")

registered = threading.Event()


async def register():
    async with httpx.AsyncClient(timeout=30) as client:
        await keep_registered(
            client, url, http_port=8080, instance_id=instance, advertise_ip="127.0.0.1",
            heartbeat_interval=0.2, on_registered=registered.set,
        )


threading.Thread(target=lambda: asyncio.run(register()), daemon=True).start()
if not registered.wait(60):
    raise SystemExit("never registered")

sink = HttpCacheEventSink(url, timeout=30)
subscriber = CacheEventSubscriber(sink, instance, incarnation=int(time.time()), flush_interval=0)
bus = EventBus(EventBusConfig())
bus.register_subscriber(subscriber)

delivered = threading.Event()
publish = sink.publish


def told(batches):
    publish(batches)
    delivered.set()


sink.publish = told
bus.start()
answers.write(json.dumps({"ready": True}) + "\n")


def emit(kind, **metadata):
    delivered.clear()
    bus.publish(Event(kind, metadata=metadata))
    if not delivered.wait(60):
        raise SystemExit("never delivered")


for line in sys.stdin:
    command = json.loads(line)
    tokens, tier, shared = command["tokens"], command.get("tier", "l1"), command.get("shared", False)
    keys, chunks = resolve_object_keys(
        token_hasher=hasher, model_name=model, world_size=world_size, token_ids=tokens, cache_salt=command.get("salt", "")
    )
    ranks = command.get("ranks")
    if ranks is not None:
        keys = [key for i, key in enumerate(keys) if i % world_size in ranks]
    meta = [L1ObjectMeta(size_bytes=100, backend=L1BackendType.DRAM)] * len(keys)
    if command["do"] == "store":
        bus.publish(Event(EventType.MP_TOKENS, metadata={
            "chunk_hashes": [key.chunk_hash for key in keys[:: len(keys) // chunks]],
            "token_chunks": [tokens[i * CHUNK : (i + 1) * CHUNK] for i in range(chunks)],
            "token_offsets": [i * CHUNK for i in range(chunks)],
        }))
        if tier == "l1":
            emit(EventType.L1_WRITE_FINISHED, keys=keys, meta=meta)
        else:
            emit(EventType.L2_KEYS_STORED, keys=keys, sizes=[100] * len(keys), backend="fs", shared=shared)
    elif command["do"] == "evict":
        if tier == "l1":
            emit(EventType.L1_KEYS_EVICTED, keys=keys, meta=meta)
        else:
            emit(EventType.L2_KEYS_DELETED, keys=keys, backend="fs", shared=shared)
    elif command["do"] == "access":
        emit(EventType.L1_KEYS_ACCESSED, keys=keys)
    answers.write(json.dumps({"done": command["do"], "keys": len(keys)}) + "\n")

# Killed, not stopped: whoever listens must notice by the missing heartbeats.
os._exit(0)
