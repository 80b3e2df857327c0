"""The relay of DV network streams: what it passes on, and where it ends a corrupt stream."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from io import BytesIO
from threading import Thread

import pytest

from evburst.app.live import relay
from evburst.app.live.devices import NetworkSource
from evburst.app.live.relay import CorruptPacketError, NoStreamError, are_events, read_packet, stream_types
from evburst.data.errors import SourceError
from evburst.data.events import SensorSize
from tests.conftest import make_events
from tests.event_files import aedat4_bytes
from tests.test_app_live_sources import read_events

SIZE = SensorSize(64, 48)
EVENTS = {0: b"EVTS"}


def network_stream(*times: list[int]) -> tuple[bytes, list[bytes]]:
    """The header and the packets of a stream with events at these times."""
    magic = len(b"#!AER-DAT4.0\r\n")  # but for it, a file is what a server sends
    header = aedat4_bytes([], SIZE)[magic:]
    return header, [aedat4_bytes([make_events(part)], SIZE)[magic + len(header) :] for part in times]


def passed_on(content: bytes, streams: dict[int, bytes]) -> tuple[list[bytes], str]:
    """The packets that a stream's content has, and what is corrupt about the next one."""
    source, packets = BytesIO(content), list[bytes]()
    try:
        while packet := read_packet(source, streams):
            packets.append(packet)
    except CorruptPacketError as error:
        return packets, str(error)
    return packets, ""


def test_a_header_names_its_streams() -> None:
    """Also one of several streams; attributes of one stream are not those of the next."""
    header = aedat4_bytes([], SIZE, ("FRME", "EVTS", "IMUS"))[14:]
    assert stream_types(header) == {0: b"FRME", 1: b"EVTS", 2: b"IMUS"}
    unnamed = header.replace(b'<attr key="typeIdentifier" type="string">FRME</attr>', b"")
    assert stream_types(unnamed) == {1: b"EVTS", 2: b"IMUS"}
    for wrong in (header.replace(b"IOHE", b"IOHF"), header.replace(b"typeIdentifier", b"typeidentifier"), bytes(40)):
        with pytest.raises(NoStreamError, match="does not use DV's network protocol"):
            stream_types(wrong)


def test_intact_packets_are_passed_on_as_they_are() -> None:
    """Also one without events, one whose table has no vector of events, compressed ones, and those of another stream."""
    header, packets = network_stream([1, 2, 3], [])
    no_vector = struct.pack("<I4sHHi", 12, b"EVTS", 4, 4, 4)
    packets += [
        struct.pack("<iiI", 0, 4 + len(no_vector), len(no_vector)) + no_vector,
        struct.pack("<ii", 0, 20) + b"\x04\x22\x4d\x18" + bytes(16),
        struct.pack("<ii", 0, 20) + b"\x28\xb5\x2f\xfd" + bytes(16),
        struct.pack("<iiII4s", 3, 16, 12, 0, b"FRME") + bytes(4),
    ]
    assert passed_on(b"".join(packets), stream_types(header) | {3: b"FRME"}) == (packets, "")
    assert passed_on(b"".join(packets)[:-1], stream_types(header) | {3: b"FRME"}) == (packets[:-1], "")  # the server died


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (struct.pack("<ii", 7, 100) + bytes(100), "a packet of stream 7, which its header does not name"),
        (struct.pack("<ii", 0, -5) + bytes(100), "a packet of -5 bytes"),
        (struct.pack("<ii", 0, 11) + bytes(100), "a packet of 11 bytes"),
        (struct.pack("<ii", 0, 1 << 30) + bytes(100), "a packet of 1073741824 bytes"),
        (struct.pack("<iiII4s", 0, 1 << 20, 0, 0, b"FRME"), "a packet of another type than its stream"),  # the rest never comes
        (struct.pack("<iiII4s", 0, 16, 12, 99, b"EVTS") + bytes(4), "a packet whose lengths or offsets are wrong"),
    ],
)
def test_a_stream_ends_before_a_corrupt_packet(packet: bytes, reason: str) -> None:
    _, (first, last) = network_stream([1, 2], [3])
    assert passed_on(first + packet + last, EVENTS) == ([first], reason)


def test_a_flipped_bit_never_leads_out_of_a_packet() -> None:
    """dv-processing follows all offsets and counts unchecked: every one that is passed on has to lie within the packet."""
    _, (packet,) = network_stream([100, 101, 102])
    n_structure = len(packet) - 3 * 16
    refused = 0
    for bit in range(8 * n_structure):
        content = bytearray(packet)
        content[bit // 8] ^= 1 << bit % 8
        packets, reason = passed_on(bytes(content), EVENTS)
        refused += bool(reason)
        if packets:
            assert are_inside(packets[0][8:])
    assert refused > 4 * n_structure
    content = bytearray(packet)
    content[-1] ^= 255  # an event that is wrong is no danger
    assert passed_on(bytes(content), EVENTS) == ([bytes(content)], "")


def are_inside(content: bytes) -> bool:
    """Follow a packet's offsets as dv-processing does, every slice within the packet."""
    view = memoryview(content)

    def number(at: int, size: int, signed: bool = False) -> int:
        assert 0 <= at <= len(view) - size
        return int.from_bytes(view[at : at + size], "little", signed=signed)

    table = 4 + number(4, 4)
    vtable = table - number(table, 4, signed=True)
    field = number(vtable + 4, 2) if number(vtable, 2) > 4 else 0
    if not field:
        return True
    vector = table + field + number(table + field, 4)
    return vector + 4 + 16 * number(vector, 4) <= len(view)


@pytest.mark.parametrize("size", range(12, 60))
def test_a_short_packet_of_events_is_refused(size: int) -> None:
    """However short: nothing is read behind its end."""
    _, (packet,) = network_stream([100, 101])
    content = packet[8 : 8 + size]
    assert not are_events(struct.pack("<I", size - 4) + content[4:])


def test_the_end_of_a_corrupt_stream_is_explained_and_it_is_not_an_abort() -> None:
    """With dv-processing itself, which a packet of another type would abort."""
    pytest.importorskip("dv_processing")
    t = 1_700_000_000_000_000
    header, (first, second) = network_stream([t + k for k in range(100)], [t + 100])
    corrupt = second[:16] + b"EVTX" + second[20:]
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = NetworkSource(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        thread = Thread(target=source.open)
        thread.start()
        peer, _ = server.accept()
        peer.sendall(header + first)
        thread.join(60)
        assert source.sensor_size == SIZE
        assert len(read_events(source, 1)) == 100
        peer.sendall(corrupt)
        with pytest.raises(SourceError, match=r"the stream is corrupt \(a packet of another type than its stream\)$"):
            read_events(source, 1000)
        source.close()
        peer.close()


def test_the_relay_starts_without_site_packages() -> None:
    """It runs as `python -I -S`, so that it starts at once: it may import the standard library only."""
    code = f"import runpy; runpy.run_path({relay.__file__!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
