"""Reads what an engine has published with vLLM's own classes: asks the replay
socket for everything and prints each message as one JSON line.

Usage: subscriber.py ADDRESS FRAMES, the address of the replay socket and how
many frames vLLM of this version has in an answer.
"""

import json
import sys

import msgspec
import zmq
from vllm.distributed import kv_events

address, frames = sys.argv[1], int(sys.argv[2])
decoder = msgspec.msgpack.Decoder(type=kv_events.KVEventBatch)
socket = zmq.Context.instance().socket(zmq.DEALER)
socket.setsockopt(zmq.RCVTIMEO, 30_000)
socket.connect(address)
socket.send_multipart([b"", (0).to_bytes(8, "big")])


def plain(value):
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def event(e):
    return {"type": type(e).__name__} | {name: plain(getattr(e, name)) for name in e.__struct_fields__}


while True:
    answer = socket.recv_multipart()
    if len(answer) != frames:
        sys.exit(f"an answer of {len(answer)} frames, want {frames}")
    seq, payload = answer[-2:]
    if seq == kv_events.ZmqEventPublisher.END_SEQ:
        break
    batch = decoder.decode(payload)
    print(json.dumps({"seq": int.from_bytes(seq, "big"), "rank": batch.data_parallel_rank, "events": [event(e) for e in batch.events]}))
