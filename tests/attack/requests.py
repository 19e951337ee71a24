"""Attacks without a key: requests that never end, and connections that say nothing."""

from __future__ import annotations

from itertools import chain, repeat

from attack.crowd import Crowd
from attack.line import Line, Order, Report, block, handshake, request

START = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HEADER = b"X-Header: %b\r\n" % (b"a" * 50)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def headers(order: Order) -> Report:
    """Send headers, and never the empty line that ends them."""
    return _poured(order, START, HEADER)


def header(order: Order) -> Report:
    """Send one header that does not end."""
    return _poured(order, START + b"X-Header: ", b"a")


def url(order: Order) -> Report:
    """Send a URL that does not end."""
    return _poured(order, b"GET /", b"a")


def kept_alive(order: Order) -> Report:
    """Ask for something that is answered, and on the same connection send headers without an end."""
    with Line(order.port) as line:
        line.ask(request("/health"), b'"ok"')
        return _pour(line, order, START, HEADER)


def body(order: Order) -> Report:
    """Send a body of a terabyte."""
    return _poured(order, POST + b"Content-Length: 1000000000000\r\n\r\n", b"a")


def chunks(order: Order) -> Report:
    """Send a body in chunks of one byte that do not end."""
    return _poured(order, CHUNKED, b"1\r\na\r\n")


def trailers(order: Order) -> Report:
    """Send headers without an end behind a body that has ended."""
    return _poured(order, CHUNKED + b"1\r\na\r\n0\r\n", HEADER)


def silent(order: Order) -> Report:
    """Connect thousands of times, and say nothing."""
    return Crowd(order).run()


def half(order: Order) -> Report:
    """Connect thousands of times, and say half a request."""
    return Crowd(order).run(b"GET /hea")


def slow(order: Order) -> Report:
    """Connect thousands of times, and say a request that does not end, a byte every second."""
    return Crowd(order).run(b"G", drip=START[1:] + 100 * HEADER)


def mute(order: Order) -> Report:
    """Open WebSockets, and say nothing."""
    return Crowd(order).run(handshake("/stream"))


def _poured(order: Order, start: bytes, what: bytes) -> Report:
    with Line(order.port) as line:
        return _pour(line, order, start, what)


def _pour(line: Line, order: Order, start: bytes, what: bytes) -> Report:
    until_s = order.ends_s()
    line.pour(chain([start], repeat(block(what))), until_s, order.n_bytes)
    line.hold(until_s)
    return line.report()
