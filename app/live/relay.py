"""Relay of a stream in DV's network protocol, run as a process of its own: `python relay.py HOST PORT SECONDS`.

dv-processing waits for the header of a stream indefinitely while it holds the GIL, which would block all threads and Ctrl-C. So
another process connects to the server, receives the header within a time limit, and only then offers the stream on a port
of this machine, the header first. It prints the port, or why there is no stream, as its first line. It ends with the stream, or
when its reader goes away. It imports nothing of evburst, so that it starts at once.

dv-processing also trusts the packets behind the header: corrupt ones abort the program that reads them. So each is checked
before it is passed on, and the stream ends before the first that is corrupt; the second line printed says why. Checked are its
stream, which the header must name, its size and, if it is not compressed, its type and all lengths and offsets of its events.
A compressed packet must begin as LZ4 or zstd does; a fault behind that is not found.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import time
from threading import Thread, Timer
from typing import BinaryIO

_SMALLEST_HEADER, _LARGEST_HEADER = 16, 1 << 20
_SMALLEST_PACKET, _LARGEST_PACKET = 12, 1 << 26
_COPIED_BYTES = 1 << 20

_STREAM = re.compile(rb'<node name="(\d{1,9})"[^>]*>(?:(?!<node).)*?key="typeIdentifier"[^>]*>([^<]{4})<', re.DOTALL)
_COMPRESSED = (b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd")  # LZ4, zstd
_EVENTS, _EVENT_BYTES = b"EVTS", 16


class NoStreamError(Exception):
    """The server sends no stream in DV's protocol."""


class CorruptPacketError(Exception):
    """A packet contradicts DV's protocol."""


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


def stream_types(header: bytes) -> dict[int, bytes]:
    """Return the type of each stream that a header names, by its number: EVTS for events.

    Raises:
        NoStreamError: it names none, or is not a header of DV's protocol.
    """
    streams = {int(number): kind for number, kind in _STREAM.findall(header)}
    if header[8:12] != b"IOHE" or not streams:
        raise NoStreamError("the server does not use DV's network protocol")
    return streams


def read_packet(source: BinaryIO, streams: dict[int, bytes]) -> bytes:
    """Read one packet: its stream and size (4 bytes each, little-endian) and its content; returns nothing at the end.

    Raises:
        CorruptPacketError: see the module for what is checked.
    """
    head = source.read(8)
    if len(head) < 8:
        return b""
    stream, size = struct.unpack("<ii", head)
    if stream not in streams:
        raise CorruptPacketError(f"a packet of stream {stream}, which its header does not name")
    if not _SMALLEST_PACKET <= size <= _LARGEST_PACKET:
        raise CorruptPacketError(f"a packet of {size} bytes")
    begin = source.read(_SMALLEST_PACKET)  # checked first: a wrong size may be one that never arrives
    if not begin.startswith(_COMPRESSED) and begin[8:] != streams[stream]:
        raise CorruptPacketError("a packet of another type than its stream")
    content = begin + source.read(size - len(begin))
    if len(content) < size:
        return b""
    if streams[stream] == _EVENTS and not begin.startswith(_COMPRESSED) and not are_events(content):
        raise CorruptPacketError("a packet whose lengths or offsets are wrong")
    return head + content


def are_events(content: bytes) -> bool:
    """Return whether all lengths and offsets of an uncompressed packet of events lie within it.

    It is a FlatBuffers table behind its own size. The table's only field is a vector of events of 16 bytes, or absent.
    """
    try:
        size, root = struct.unpack_from("<II", content)
        table = 4 + root
        vtable = table - struct.unpack_from("<i", content, table)[0]
        if 4 + size != len(content) or vtable < 0:
            return False
        vtable_bytes = struct.unpack_from("<H", content, vtable)[0]
        field = struct.unpack_from("<H", content, vtable + 4)[0] if vtable_bytes > 4 else 0
        if not field:
            return True
        vector = table + field + struct.unpack_from("<I", content, table + field)[0]
        count = struct.unpack_from("<I", content, vector)[0]
    except struct.error:  # behind the end
        return False
    return bool(vector + 4 + _EVENT_BYTES * count <= len(content))


def copy_packets(source: BinaryIO, target: socket.socket, streams: dict[int, bytes]) -> None:
    """Send packets to a socket until either ends.

    Raises:
        CorruptPacketError: a packet is corrupt; those before it have been sent.
    """
    try:
        while packet := read_packet(source, streams):
            target.sendall(packet)
    except OSError:
        return


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
        streams = stream_types(header)
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
    try:
        copy_packets(server.makefile("rb"), reader, streams)
    except CorruptPacketError as error:
        print(error, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
