"""Finds what this machine offers to workers: processors, GPUs, and the address at which others reach it."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from dtrain.common import environment, gpu

LOOPBACK = "127.0.0.1"
INFINIBAND = Path("/sys/class/infiniband")
SIOCGIFADDR = 0x8915
"""The call that gives an interface's IPv4 address (netdevice(7))."""
ELSEWHERE = "192.0.2.1"
"""An address that belongs to no machine (RFC 5737)."""


def cpus() -> int:
    """Processors this process may use."""
    if given := os.environ.get(environment.CPUS):
        return int(given)
    return len(os.sched_getaffinity(0))


def gpus() -> int:
    """NVIDIA GPUs this process may use: those of `CUDA_VISIBLE_DEVICES`, else the device files there are."""
    named = gpu.named()
    return gpu.device_files() if named is None else len(named)


def settings() -> dict[str, str]:
    """Return the variables of every process on this node, where the user sets no others; none where there are no such devices."""
    found: dict[str, str] = {}
    if gpus():
        # A look at CUDA would start it, and what is forked afterwards could not use it.
        found |= {gpu.ORDER: gpu.BY_BUS, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    if INFINIBAND.is_dir():
        # Data workers are forked from processes whose memory network cards write to.
        found |= {"RDMAV_FORK_SAFE": "1", "IBV_FORK_SAFE": "1"}
    return found


def address() -> str:
    """Where the other nodes reach this one: what the cluster said, else what the host name resolves to, else (Debian and Ubuntu
    resolve it to a loopback address) the address that packets to another network leave from."""
    if given := os.environ.get(environment.ADDRESS):
        return given
    try:
        found = socket.gethostbyname(socket.gethostname())
    except OSError:
        found = LOOPBACK
    return found if not found.startswith("127.") else _routed_address() or found


def interface(address: str) -> str:
    """The network interface with this IPv4 address; '' for a loopback address, or if none has it."""
    if address.startswith("127."):
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return ""


def _routed_address() -> str:
    """Return the address of the network interface that the routing table chooses; connecting a UDP socket sends
    nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((ELSEWHERE, 9))
        except OSError:
            return ""
        address: str = probe.getsockname()[0]
        return "" if address.startswith("127.") else address
