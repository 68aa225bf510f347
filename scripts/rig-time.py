#!/usr/bin/env python3
"""rig-time.py ADDRESS: a time server that tells this machine's time (NTP, RFC 5905 section 7.3, mode 4).

For the rig only, whose nodes have this machine's clock anyway: a real daemon would take the host's time over when it
is installed.
"""
import socket
import struct
import sys
import time

PORT = 123
SINCE_1900 = 2208988800
STRATUM = 3


def stamp(seconds):
    return struct.pack("!II", int(seconds) + SINCE_1900, int(seconds % 1 * (1 << 32)))


door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind((sys.argv[1], PORT))
while True:
    question, peer = door.recvfrom(1024)
    received = time.time()
    if len(question) < 48 or question[0] & 7 != 3:
        continue
    head = struct.pack("!BBbbII4s", question[0] & 0x38 | 4, STRATUM, 6, -20, 0, 1 << 10, b"\x7f\x00\x00\x01")
    # Reference, origin (what the client sent), receive, transmit.
    door.sendto(head + stamp(received - 1) + question[40:48] + stamp(received) + stamp(time.time()), peer)
