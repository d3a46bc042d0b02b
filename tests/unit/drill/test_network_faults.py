"""What a drill does to the connections of a process, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

PAIR = """
import socket
from dtrain.drill import network_faults
server = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(server.getsockname())
other, _ = server.accept()
"""


def outcome(program: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", PAIR + program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_cut_is_an_end_on_both_sides_and_spares_who_listens() -> None:
    program = """
network_faults.cut()
print(one.recv(1), other.recv(1))
socket.create_connection(server.getsockname())
"""
    assert outcome(program) == "b'' b''"


def test_a_delay_bounds_what_the_kernel_sends() -> None:
    program = """
network_faults.slow_down()
print(*(each.getsockopt(socket.SOL_SOCKET, network_faults.SO_MAX_PACING_RATE) for each in (one, other)))
"""
    assert outcome(program) == "4000000 4000000"
