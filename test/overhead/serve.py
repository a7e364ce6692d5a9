"""What both proxies share: the web server, and which headers pass."""

import json
import socket

import uvicorn

OWN = {"host", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


def forwarded(headers):
    """The headers that are not one connection's own."""
    return {k: v for k, v in headers.items() if k.lower() not in OWN}


def run(app):
    """Serves on a free port of loopback and prints the address as JSON."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    host, port = listener.getsockname()
    print(json.dumps({"listen": f"{host}:{port}"}), flush=True)
    # uvloop and httptools, the fastest it has.
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])
