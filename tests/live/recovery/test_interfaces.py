"""On a machine whose host name stands for a loopback address, the workers' sockets are where the rendezvous is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PREPARE = """
mount --make-rprivate / && echo "127.0.0.1 localhost\n127.0.1.1 $(hostname)" > $1/hosts && mount --bind $1/hosts /etc/hosts
ip link set lo up && ip link add cable type veth peer name other && ip link set other up && ip addr add 192.0.2.2/24 dev cable && ip link set cable up
ip route add default dev cable
exec "$2" -P -c "$3"
"""
PROGRAM = """
import os, socket
from dtrain.agent import devices
address = devices.address()
assert address == "192.0.2.2", address
assert devices.interface(address) == "cable"
assert devices.interface("127.0.1.1") == "" == devices.interface("192.0.2.77")
from dtrain.api.strategy import RankInfo, RendezvousInfo
from dtrain.launch import registry
os.environ["DTRAIN_INTERFACE"] = devices.interface(address)
for name, variable in (("ddp", "NCCL_SOCKET_IFNAME"), ("horovod", "HOROVOD_GLOO_IFACE")):
    found = registry.strategy(name, {}).environment(RankInfo(0, 1, 0, 1, 0, 1, 1), RendezvousInfo((address,), (4711,), "a-run", 1))
    assert found[variable] == "cable", found
os.environ["NCCL_SOCKET_IFNAME"] = "mine"
found = registry.strategy("ddp", {}).environment(RankInfo(0, 1, 0, 1, 0, 1, 1), RendezvousInfo((address,), (4711,), "a-run", 1))
assert "NCCL_SOCKET_IFNAME" not in found, "the user's own"
os.environ.update({name: value for name, value in found.items() if not value.startswith("<")})
import torch.distributed as dist
dist.init_process_group("gloo", rank=0, world_size=1)
with open("/proc/net/tcp") as table:
    listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
own = [socket.inet_ntoa(bytes.fromhex(one.split(":")[0])[::-1]) for one in listening if int(one.split(":")[1], 16) != 4711]
assert own and set(own) == {"192.0.2.2"}, own
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of one's own needs root")
def test_sockets_follow_the_address_of_the_node(tmp_path: str) -> None:
    command = [
        "unshare",
        "--net",
        "--mount",
        "--uts",
        "sh",
        "-c",
        PREPARE,
        "sh",
        str(tmp_path),
        sys.executable,
        PROGRAM,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
