"""A slow link for ssh's ProxyCommand: `slow_link.py HOST PORT BYTES_PER_SECOND SECONDS` passes on what it reads at a rate, each byte so much later."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time

CHUNK = 4096


def carried(read: int, write: int, rate: float, delay: float) -> None:
    """Carry bytes from one descriptor to another until the first one ends."""
    under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(64)

    def deliver() -> None:
        while True:
            due, data = under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                return
            while data:
                data = data[os.write(write, data) :]

    thread = threading.Thread(target=deliver)
    thread.start()
    free = 0.0
    while True:
        data = os.read(read, CHUNK)
        free = max(free, time.monotonic()) + len(data) / rate
        under_way.put((free + delay, data))
        if not data:
            break
    thread.join()


def main() -> None:
    """Connect, and carry both ways until the other side closes."""
    host, port, rate, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    with socket.create_connection((host, port)) as there:
        threading.Thread(target=carried, args=(0, there.fileno(), rate, delay), daemon=True).start()
        carried(there.fileno(), 1, rate, delay)


if __name__ == "__main__":
    main()
