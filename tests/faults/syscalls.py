"""A process whose file system calls are seen one by one, and that can be killed, or refused, at any of them.

The calls are held by the kernel (seccomp's user notification, Linux 5.5 or newer) until the supervisor answers, so
that whatever writes is seen: Python, numpy, Rust and C++ engines alike, in any thread or subprocess, with no hook in
the code under test. Not seen: what reaches a file through a memory map.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

# name: (kind, number on x86_64, number on aarch64); None where the architecture has no such call.
CALLS: dict[str, tuple[str, int | None, int | None]] = {
    "write": ("write", 1, 64),
    "pwrite64": ("write", 18, 68),
    "writev": ("write", 20, 66),
    "sendfile": ("write", 40, 71),
    "copy_file_range": ("write", 326, 285),
    "ftruncate": ("write", 77, 46),
    "fallocate": ("write", 285, 47),
    "fsync": ("fsync", 74, 82),
    "fdatasync": ("fsync", 75, 83),
    "rename": ("rename", 82, None),
    "renameat": ("rename", 264, 38),
    "renameat2": ("rename", 316, 276),
    "link": ("rename", 86, None),
    "linkat": ("rename", 265, 37),
    "unlink": ("remove", 87, None),
    "unlinkat": ("remove", 263, 35),
    "rmdir": ("remove", 84, None),
    "mkdir": ("create", 83, None),
    "mkdirat": ("create", 258, 34),
    "open": ("create", 2, None),
    "creat": ("create", 85, None),
    "openat": ("create", 257, 56),
}
ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column of CALLS, AUDIT_ARCH
SECCOMP_CALL = {"x86_64": 317, "aarch64": 277}
CREATES = os.O_CREAT | os.O_TRUNC  # an open without them changes nothing
AT_FDCWD = -100

NOTIFY_RECEIVE, NOTIFY_SEND = 0xC0502100, 0xC0182101
NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, number, architecture, instruction, arguments
RESPONSE = struct.Struct("=QqiI")  # id, value, error, flags
CONTINUE = 1


class Verdict(Enum):
    """What becomes of a call: it goes on; the process dies before it; or after half of its bytes are written; or the
    process gets Ctrl-C's signal and the call goes on."""

    go_on = "go on"
    kill = "kill"
    torn = "torn"
    interrupt = "interrupt"


class Event(NamedTuple):
    """A call that changes the tree under the supervised root. `path` is relative to it; `to` is a rename's new name."""

    kind: str  # write, fsync, rename, remove, create
    call: str
    path: str
    to: str = ""


@dataclass
class Outcome:
    """How a supervised process ended: exit code (minus a signal's number), its calls, its seconds, what it printed."""

    code: int
    events: list[Event] = field(default_factory=list)
    seconds: float = 0.0
    stopped_at: Event | None = None
    output: str = ""


Decide = Callable[[int, Event], "Verdict | int"]  # an int is an errno to refuse the call with


def why_not() -> str | None:
    """Why processes cannot be supervised here, or None."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return f"no table of system calls for {sys.platform} on {platform.machine()}"
    outcome = run(lambda: 0, Path("/nowhere"), decide=lambda number, event: Verdict.go_on)
    return None if outcome.code == 0 else f"this system refuses seccomp's user notification: {outcome.output.strip()}"


def run(
    main: Callable[[], int],
    root: Path,
    *,
    decide: Decide | None = None,
    kill_after: float | None = None,
    limit: float = 300.0,
) -> Outcome:
    """Fork, call `main` in the child and wait for it.

    With `decide`, every call that changes the tree under `root` is held until decide(its number, the call) says what
    becomes of it. With `kill_after`, the child gets SIGKILL after so many seconds. A child still running after `limit`
    seconds is killed and reported with TimeoutError.
    """
    root = root.resolve()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    log = os.memfd_create("output")
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(main, theirs if decide else None, log)
    theirs.close()
    listener = _receive(ours) if decide else None
    ours.close()
    outcome = Outcome(0)
    ended = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        if listener is not None:
            poll.register(listener, select.POLLIN)
        while True:
            end = start + min(limit, kill_after if kill_after is not None else limit)
            ready = dict(poll.poll(max(0.0, 1000 * (end - time.monotonic()))))
            if not ready:
                _kill(pid)
                if kill_after is None or limit < kill_after:
                    raise TimeoutError(f"still running after {limit:g} s; its last call was {outcome.events[-1:]}")
                kill_after = limit
            if listener is not None and ready.get(listener, 0) & select.POLLIN:
                assert decide is not None
                _answer(listener, pid, root, decide, outcome)
            elif ended in ready:
                break
    finally:
        outcome.seconds = time.monotonic() - start
        _, status = os.waitpid(pid, 0)
        _kill(pid)  # what it may have started
        os.close(ended)
        if listener is not None:
            os.close(listener)
        size = os.fstat(log).st_size
        outcome.output = os.pread(log, size, 0).decode(errors="replace")
        os.close(log)
    outcome.code = os.waitstatus_to_exitcode(status)
    return outcome


def _kill(pid: int) -> None:
    """SIGKILL to a child and all it started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _child(main: Callable[[], int], channel: socket.socket | None, log: int) -> None:
    """Never returns: the parent's stack is no place to unwind into."""
    code = 70
    try:
        os.setpgid(0, 0)
        die_with_parent = 1
        ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))  # not a test's capture
        if channel is not None:
            socket.send_fds(channel, [b"x"], [_listen()])
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _receive(channel: socket.socket) -> int | None:
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    return fds[0] if fds else None


def _listen() -> int:
    """Hold this process' calls of the table from here on; the descriptor on which they are answered."""
    machine = platform.machine()
    column, architecture = ARCHITECTURES[machine]
    plain = [call[column] for name, call in CALLS.items() if name not in ("open", "openat")]
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, notify = 0x7FFF0000, 0x7FC00000
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, allow), (load, 0, 0, 0)]
    for number in plain:
        if number is not None:
            code += [(equal, 0, 1, number), (give, 0, 0, notify)]
    for name, flags in (("open", 1), ("openat", 2)):
        if (number := CALLS[name][column]) is not None:
            code += [
                (equal, 0, 3, number),
                (load, 0, 0, 16 + 8 * flags),
                (any_bit, 0, 1, CREATES),
                (give, 0, 0, notify),
            ]
            code += [(load, 0, 0, 0)]
    code += [(give, 0, 0, allow)]
    packed = b"".join(struct.pack("=HBBI", *line) for line in code)
    program = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("@HP", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter, new_listener = 38, 1, 8
    if libc.prctl(no_new_privileges, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = libc.syscall(SECCOMP_CALL[machine], set_filter, new_listener, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return listener


# --- the supervisor's side -------------------------------------------------------------------------------------------


def _answer(listener: int, child: int, root: Path, decide: Decide, outcome: Outcome) -> None:
    """Take one held call, decide, and let it go on, fail or never return."""
    buffer = bytearray(NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, NOTIFY_RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):  # its thread is gone
            return
        raise
    number, pid, _, call, _, _, *arguments = NOTIFICATION.unpack(buffer)
    verdict: Verdict | int = Verdict.go_on
    try:
        event = _event(pid, call, arguments, root)
        if event is not None:
            outcome.events.append(event)
            verdict = decide(len(outcome.events) - 1, event)
            if verdict is not Verdict.go_on:
                outcome.stopped_at = outcome.stopped_at or event
            if verdict is Verdict.torn:
                _write_half(pid, event.call, arguments)
    except (FileNotFoundError, ProcessLookupError):
        return  # killed meanwhile
    if verdict in (Verdict.kill, Verdict.torn):
        _kill(child)
        return
    if verdict is Verdict.interrupt:
        os.kill(child, signal.SIGINT)
    refused = -verdict if isinstance(verdict, int) else 0
    try:
        fcntl.ioctl(listener, NOTIFY_SEND, RESPONSE.pack(number, 0, refused, 0 if refused else CONTINUE))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _event(pid: int, number: int, arguments: list[int], root: Path) -> Event | None:
    """The call in words, or None where it changes nothing under `root`."""
    column = ARCHITECTURES[platform.machine()][0]
    name = next(name for name, call in CALLS.items() if call[column] == number)
    kind = CALLS[name][0]
    to = ""
    if kind in ("write", "fsync"):
        path = os.readlink(f"/proc/{pid}/fd/{arguments[2 if name == 'copy_file_range' else 0]}")
    elif name in ("renameat", "renameat2", "linkat"):
        path, to = _named(pid, arguments[0], arguments[1]), _named(pid, arguments[2], arguments[3])
    elif name in ("rename", "link"):
        path, to = _named(pid, AT_FDCWD, arguments[0]), _named(pid, AT_FDCWD, arguments[1])
    elif name.endswith("at"):
        path = _named(pid, arguments[0], arguments[1])
    else:
        path = _named(pid, AT_FDCWD, arguments[0])
    if not path.startswith(f"{root}/"):
        return None
    return Event(kind, name, os.path.relpath(path, root), os.path.relpath(to, root) if to else "")


def _named(pid: int, folder: int, address: int) -> str:
    """The absolute path that a call names by a folder's descriptor and a string in the process' memory."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        name = b""
        while b"\0" not in name:  # page by page: what follows the string's page may not be mapped
            here = address + len(name)
            name += os.pread(memory.fileno(), 4096 - here % 4096, here)
    folder = ctypes.c_int(folder & 0xFFFFFFFF).value
    place = "cwd" if folder == AT_FDCWD else f"fd/{folder}"
    return os.path.normpath(os.path.join(os.readlink(f"/proc/{pid}/{place}"), os.fsdecode(name.partition(b"\0")[0])))


def _write_half(pid: int, call: str, arguments: list[int]) -> None:
    """Write the first half of what a held write would, where it would. Other calls that grow a file are left undone."""
    if call not in ("write", "pwrite64", "writev"):
        return
    fd, address, size = arguments[:3]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        if call == "writev":
            vector = os.pread(memory.fileno(), 16 * size, address)
            parts = [struct.unpack_from("=QQ", vector, 16 * i) for i in range(size)]
        else:
            parts = [(address, size)]
        data = b"".join(os.pread(memory.fileno(), length, start) for start, length in parts)
    fields = dict(
        line.split(":\t") for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines() if ":\t" in line
    )
    appends = int(fields["flags"], 8) & os.O_APPEND
    with open(f"/proc/{pid}/fd/{fd}", "r+b", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        place = arguments[3] if call == "pwrite64" else end if appends else int(fields["pos"])
        os.pwrite(file.fileno(), data[: len(data) // 2], place)
