"""One engine's publisher of KV events for tests: vLLM's own kv_events.py, driven
by JSON lines.

Usage: publisher.py CONFIG, with CONFIG a JSON object: the arguments of vLLM's
ZmqEventPublisher, and "bind", an address where it binds too: vLLM itself binds
to one port that was chosen before on all interfaces only. Prints {"events": address, "replay": address} when it is
bound. Reads one JSON command a line from stdin and answers each with one line;
ends when stdin does. Commands:
  {"publish": [event, ...]}  one message; an event is {"type": class, field: value},
                             a hash written as {"bytes": hex} is bytes
  {"lose": n}                the next n messages are lost on the way
"""

import json
import sys
import time

import zmq
from vllm.distributed import kv_events


class Lossy:
    """A socket whose next messages are lost."""

    def __init__(self, socket):
        self.socket, self.lose = socket, 0

    def send_multipart(self, frames):
        if self.lose > 0:
            self.lose -= 1
        else:
            self.socket.send_multipart(frames)

    def __getattr__(self, name):
        return getattr(self.socket, name)


def plain(value):
    if isinstance(value, dict) and "bytes" in value:
        return bytes.fromhex(value["bytes"])
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value


def event(record):
    cls = getattr(kv_events, record.pop("type"))
    return cls(**{k: plain(v) for k, v in record.items() if k in cls.__struct_fields__})


config = json.loads(sys.argv[1])
also = config.pop("bind", None)
publisher = kv_events.ZmqEventPublisher(data_parallel_rank=config.pop("data_parallel_rank", 0), **config)
lossy = publisher._pub = Lossy(publisher._pub)
if also:
    lossy.bind(also)  # Nothing is published yet, so nobody else uses the socket.
replay = publisher._replay.getsockopt_string(zmq.LAST_ENDPOINT) if publisher._replay else ""
print(json.dumps({"events": lossy.getsockopt_string(zmq.LAST_ENDPOINT), "replay": replay}), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    if "publish" in command:
        events = [event(e) for e in command["publish"]]
        publisher.publish(kv_events.KVEventBatch(ts=time.time(), events=events))
        while publisher._event_queue.unfinished_tasks:
            time.sleep(0.001)
    elif "lose" in command:
        lossy.lose = command["lose"]
    print("{}", flush=True)
publisher.shutdown()
