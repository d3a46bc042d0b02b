"""Write down everything that a program can see of the process it runs in: `process_dump.py FILE`."""

import gc
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from multiprocessing import forkserver, process, resource_tracker, util
from pathlib import Path

import torch


def descriptors():
    """Number → what is open."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:
            continue  # that of this listing
    return found


def handler(number):
    found = signal.getsignal(number)
    return getattr(found, "__name__", str(found))


main = sys.modules["__main__"]
seen = {
    "environment": dict(os.environ),
    "descriptors": descriptors(),
    "inheritable": [number for number in descriptors() if int(number) > 2 and os.get_inheritable(int(number))],
    "signals": {
        number.name: handler(number) for number in signal.valid_signals() if isinstance(number, signal.Signals)
    },
    "blocked signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "wakeup": signal.set_wakeup_fd(-1),
    "start method": multiprocessing.get_start_method(allow_none=True),
    "default start method": multiprocessing.get_start_method(),
    "parent process": str(multiprocessing.parent_process()),
    "process name": multiprocessing.current_process().name,
    "daemon": multiprocessing.current_process().daemon,
    "children": len(multiprocessing.active_children()),
    "forkserver": [forkserver._forkserver._forkserver_pid, forkserver._forkserver._forkserver_address],
    "preload": forkserver._forkserver._preload_modules,
    "resource tracker": resource_tracker._resource_tracker._fd,
    "temporary folder of multiprocessing": util.get_temp_dir(),
    "temporary folder": tempfile.gettempdir(),
    "authkey": multiprocessing.current_process().authkey.hex(),
    "original folder": process.ORIGINAL_DIR,
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "path": sys.path,
    "flags": str(sys.flags),
    "warnings": sys.warnoptions,
    "main": {name: repr(value) for name, value in vars(main).items() if name.startswith("__")},
    "main is this": main.__dict__ is globals(),
    "folder": str(Path.cwd()),
    "thread": threading.current_thread() is threading.main_thread(),
    "threads": threading.active_count(),
    "streams": [
        [stream.name, stream.encoding, stream is original]
        for stream, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__))
    ],
    "hook": sys.excepthook is sys.__excepthook__,
    "garbage": [gc.isenabled(), gc.get_threshold()],
    "threads of torch": torch.get_num_threads(),
    "seed of torch": torch.initial_seed(),
    "host": socket.gethostname(),
    "umask": os.umask(0o022),
    "priority": os.nice(0),
    "default timeout": socket.getdefaulttimeout(),
}
with open(f"{sys.argv[1]}-{os.environ.get('RANK', '0')}.json", "w") as file:
    json.dump(seen, file)
