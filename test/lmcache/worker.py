"""One LMCache worker for tests: the real worker, message sender and token
database of an installed LMCache, driven by JSON lines.

Usage: worker.py CONFIG, with CONFIG a JSON object:
  instance, pull, reply ("host:port"), heartbeat_seconds, receive_timeout_ms,
  and, where they are not LMCache's defaults, chunk_size and algorithm.
Reads one JSON command a line from stdin and answers each with one JSON line on
stdout; ends when stdin does. Commands, by "do":
  store  {tokens}: keys of the tokens by the real token database, then admit
  admit, evict {keys}
  p2p    {hashes}: asks the controller through the worker's own socket
Lines with "event" come on their own: ready (loaded, with the worker's port) and
freeze. What is not LMCache's here: an engine that only keeps a table of keys,
and the addresses, which stay on loopback.
"""

import asyncio
import importlib.util
import json
import os
import socket
import sys
import threading
import types

# Every line of stdout is ours; LMCache logs to whatever stdout was.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
writing = threading.Lock()


def say(**line):
    with writing:
        answers.write(json.dumps(line) + "\n")


def spare_the_unused():
    """Keeps out what would need PyTorch, and what would phone home."""
    root = importlib.util.find_spec("lmcache").submodule_search_locations[0]
    backends = types.ModuleType("lmcache.v1.storage_backend")
    backends.__path__ = [os.path.join(root, "v1", "storage_backend")]
    sys.modules[backends.__name__] = backends
    for name in ("lmcache.usage_context", "lmcache.usage_telemetry"):
        usage = types.ModuleType(name)
        usage.ContinuousUsageContext = usage.InitializeUsageContext = lambda *args, **kwargs: None
        sys.modules[name] = usage


class CPUBackend:
    """The table of LMCache's LocalCPUBackend without the memory behind it."""

    def __init__(self):
        self.hot = {}
        self.sender = None

    def __str__(self):
        return "LocalCPUBackend"

    def get_keys(self):
        return [types.SimpleNamespace(chunk_hash=key) for key in self.hot]

    def admit(self, keys):
        for key in keys:
            if key not in self.hot:
                self.hot[key] = True
                self.sender.admit(key)

    def evict(self, keys):
        for key in keys:
            if self.hot.pop(key, None):
                self.sender.evict(key)


class Batches:
    """Reports of 0.3.10 and later, by LMCache's own sender."""

    def __init__(self, worker, **about):
        from lmcache.v1.cache_controller.message import OpType
        from lmcache.v1.storage_backend.batched_message_sender import BatchedMessageSender

        self.op = OpType
        self.sender = BatchedMessageSender(lmcache_worker=worker, **about)

    def admit(self, key):
        self.sender.add_kv_op(op_type=self.op.ADMIT, key=key)

    def evict(self, key):
        self.sender.add_kv_op(op_type=self.op.EVICT, key=key)


class Singles:
    """Reports up to 0.3.9, one message a key, as its LocalCPUBackend sends them."""

    def __init__(self, worker, config, metadata, location):
        from lmcache.v1.cache_controller import message

        self.messages, self.worker = message, worker
        self.about = dict(instance_id=config.lmcache_instance_id, worker_id=metadata.worker_id, location=location)

    def admit(self, key):
        self.worker.put_msg(self.messages.KVAdmitMsg(key=key, **self.about))

    def evict(self, key):
        self.worker.put_msg(self.messages.KVEvictMsg(key=key, **self.about))


class Engine:
    def __init__(self, backend):
        self.storage_manager = types.SimpleNamespace(local_cpu_backend=backend)

    def freeze(self, enabled):
        say(event="freeze", enabled=enabled)

    def health(self):
        return 0


def main():
    given = json.loads(sys.argv[1])
    spare_the_unused()

    import zmq

    from lmcache.v1.cache_controller import worker as worker_module
    from lmcache.v1.cache_controller.message import BatchedP2PLookupMsg
    from lmcache.v1.config import LMCacheEngineConfig
    from lmcache.v1.token_database import ChunkedTokenDatabase

    # The worker binds the socket that we listen on already: its port is known
    # and nobody else can take it in between.
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]

    def get_zmq_socket(context, socket_path, protocol, role, bind_or_connect):
        opened = context.socket(role)
        if bind_or_connect == "bind":
            opened.setsockopt(zmq.USE_FD, listener.detach())
            opened.bind(f"tcp://127.0.0.1:{port}")
        else:
            opened.connect(f"{protocol}://{socket_path}")
        return opened

    worker_module.get_zmq_socket = get_zmq_socket
    worker_module.get_ip = lambda: "127.0.0.1"

    config = LMCacheEngineConfig.from_defaults()
    config.enable_controller = True
    config.lmcache_instance_id = given["instance"]
    config.controller_pull_url = given["pull"]
    config.controller_reply_url = given["reply"]
    config.lmcache_worker_ports = [port]
    config.chunk_size = given.get("chunk_size", config.chunk_size)
    config.pre_caching_hash_algorithm = given.get("algorithm", config.pre_caching_hash_algorithm)
    # Up to 0.3.9 the worker takes it for granted; nobody is there.
    config.p2p_host, config.p2p_init_ports = "127.0.0.1", [1]
    config.lmcache_worker_heartbeat_delay_time = 0
    config.lmcache_worker_heartbeat_time = given["heartbeat_seconds"]
    # The waits of a full sync, in real life many seconds.
    config.extra_config = {"full_sync_startup_delay_s": 0.05, "full_sync_status_poll_interval_s": 0.05, "full_sync_batch_size": 3}
    config.extra_config["worker_socket_recv_timeout_ms"] = given["receive_timeout_ms"]

    import torch

    about = dict(model_name="m", world_size=1, worker_id=0, kv_dtype=torch.bfloat16, kv_shape=(1, 2, 256, 1, 1))
    try:
        from lmcache.v1.metadata import LMCacheMetadata

        metadata = LMCacheMetadata(local_world_size=1, local_worker_id=0, **about)
    except ImportError:  # up to 0.3
        from lmcache.config import LMCacheEngineMetadata

        metadata = LMCacheEngineMetadata(fmt="vllm", **about)

    tokens = ChunkedTokenDatabase(config, metadata)
    backend = CPUBackend()
    worker = worker_module.LMCacheWorker(config, metadata, Engine(backend))
    sender = Batches if importlib.util.find_spec("lmcache.v1.storage_backend.batched_message_sender") else Singles
    backend.sender = sender(worker, config=config, metadata=metadata, location=str(backend))
    say(event="ready", port=port)

    for line in sys.stdin:
        command = json.loads(line)
        do = command["do"]
        if do == "store":
            keys = [key for _, _, key in tokens.process_tokens(tokens=command["tokens"], make_key=False)]
            backend.admit(keys)
            say(done=do, keys=keys)
        elif do == "admit":
            backend.admit(command["keys"])
            say(done=do)
        elif do == "evict":
            backend.evict(command["keys"])
            say(done=do)
        elif do == "p2p":
            message = BatchedP2PLookupMsg(hashes=command["hashes"], instance_id=given["instance"], worker_id=0)
            asked = asyncio.run_coroutine_threadsafe(worker.async_put_and_wait_msg(message), worker.loop)
            say(done=do, layout=asked.result(timeout=30).layout_info)


main()
# The worker's threads would keep the process alive.
os._exit(0)
