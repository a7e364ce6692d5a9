"""LMCache's own coordinator or controller, on a port of its own choice.

Usage: serve.py coordinator|controller. Prints one JSON line with the ports, then
serves until stdin ends.
"""

import json
import os
import socket
import sys
import threading

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import spared  # noqa: F401
import uvicorn


def coordinator():
    from lmcache.v1.mp_coordinator.app import create_app
    from lmcache.v1.mp_coordinator.config import MPCoordinatorConfig

    return create_app(MPCoordinatorConfig(metrics_enabled=False)), {}


def controller():
    import zmq

    from lmcache.v1.cache_controller import controller_manager

    ports = {}

    def get_zmq_socket(context, name, protocol, role, bind_or_connect):
        opened = context.socket(role)
        opened.bind("tcp://127.0.0.1:*")
        ports[name] = opened.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode().removeprefix("tcp://")
        return opened

    controller_manager.get_zmq_socket = get_zmq_socket
    from lmcache.v1.api_server.__main__ import create_app

    # The names stand in for the addresses of its sockets.
    return create_app({"pull": "pull", "reply": "reply", "heartbeat": None}, -1, 60), ports


app, ports = {"coordinator": coordinator, "controller": controller}[sys.argv[1]]()
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
answers.write(json.dumps({"http": "http://127.0.0.1:%d" % listener.getsockname()[1], **ports}) + "\n")


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_stdin, daemon=True).start()
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
