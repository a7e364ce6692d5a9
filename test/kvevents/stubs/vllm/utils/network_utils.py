"""Stands in for vLLM's own: the publisher calls these only for tcp://*:0."""


def _unused(*args):
    raise NotImplementedError


get_ip = get_tcp_uri = is_valid_ipv6_address = split_zmq_path = _unused
