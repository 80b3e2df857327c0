"""Relay of a stream in DV's network protocol, run as a process of its own: `python relay.py HOST PORT SECONDS`.

dv-processing waits for the header of a stream indefinitely while it holds the GIL, which would block all threads and Ctrl-C. So
another process connects to the server, receives the header within a time limit, and only then offers the stream on a port
of this machine, the header first. It prints the port, or why there is no stream, as its first line. It ends with the stream, or
when its reader goes away. It imports nothing of evburst, so that it starts at once.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from threading import Thread, Timer

_SMALLEST_HEADER, _LARGEST_HEADER = 16, 1 << 20
_COPIED_BYTES = 1 << 20


class NoStreamError(Exception):
    """The server sends no stream in DV's protocol."""


def receive_header(server: socket.socket, seconds: float) -> bytes:
    """Receive the header of DV's protocol: a length (4 bytes, little-endian) and that number of bytes.

    Raises:
        NoStreamError: the header is not received within the time, or does not follow the protocol.
    """
    stop_s, received, expected = time.perf_counter() + seconds, b"", 4
    while len(received) < expected:
        server.settimeout(max(stop_s - time.perf_counter(), 0.001))
        try:
            part = server.recv(expected - len(received))
        except TimeoutError:
            raise NoStreamError(f"connected, but no stream within {seconds:g} s; is it a DV stream?") from None
        if not part:
            raise NoStreamError("the server closed the connection; is it a DV stream?")
        received += part
        if len(received) == 4:
            expected = 4 + int.from_bytes(received, "little")
            if not _SMALLEST_HEADER <= expected <= _LARGEST_HEADER:
                raise NoStreamError("the server does not use DV's network protocol")
    return received


def connect(host: str, port: int, seconds: float) -> tuple[socket.socket, bytes]:
    """Return a connection to a server and the header that it sent.

    Raises:
        NoStreamError: the connection fails, or see `receive_header`.
    """
    try:
        server = socket.create_connection((host, port), seconds)
    except TimeoutError:
        raise NoStreamError(f"cannot connect (no answer within {seconds:g} s); is the server running?") from None
    except OSError as error:
        raise NoStreamError(f"cannot connect ({error.strerror or error}); is the server running?") from None
    try:
        return server, receive_header(server, seconds)
    except OSError as error:
        server.close()
        raise NoStreamError(f"the stream was interrupted ({error.strerror or error})") from None
    except NoStreamError:
        server.close()
        raise


def copy(source: socket.socket, target: socket.socket) -> None:
    """Send what arrives from one socket to another until either is closed."""
    buffer = bytearray(_COPIED_BYTES)
    try:
        while count := source.recv_into(buffer):
            target.sendall(memoryview(buffer)[:count])
    except OSError:
        return


def _copy_and_exit(source: socket.socket, target: socket.socket) -> None:
    copy(source, target)
    os._exit(0)


def main(host: str, port: int, seconds: float) -> None:
    """Relay one stream to the first reader."""
    watchdog = Timer(3 * seconds, os._exit, (1,))  # the name of a host is looked up without a time limit
    watchdog.daemon = True
    watchdog.start()
    try:
        server, header = connect(host, port, seconds)
    except NoStreamError as error:
        print(error, flush=True)
        return
    with socket.create_server(("127.0.0.1", 0)) as own:
        own.settimeout(seconds)
        print(own.getsockname()[1], flush=True)
        reader, _ = own.accept()
    watchdog.cancel()
    server.settimeout(None)
    reader.settimeout(None)
    reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader.sendall(header)
    Thread(target=_copy_and_exit, args=(reader, server), daemon=True).start()
    copy(server, reader)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
