"""Leases, which keep two processes from computing the same stage.

They are a courtesy: were two processes to hold one after all, both would write the same bits and
one commit would be dropped.
"""

import os
import shutil
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mibench.store.disk import make_folder
from mibench.store.errors import writing

LEASE_SECONDS = 60.0
"""After so long without a heartbeat a holder counts as gone."""
EMPTY_LEASE_SECONDS = 2.0
"""A lease without a holder's name, which a crash leaves, is taken over after so long."""


@contextmanager
def lease(path: Path, done: Callable[[], bool], seconds: float) -> Iterator[bool]:
    """Waits until the work is done by someone else (False) or ours to do (True).

    Args:
        path: The lease's file.
        done: Says whether the work is done.
        seconds: How long a holder may be silent.
    """
    with writing(path.parent.parent):
        make_folder(path.parent)
    mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
    last: tuple[str, int] | None = None
    since = time.monotonic()
    while True:
        if done():
            yield False
            return
        with writing(path.parent.parent):
            if _take(path, mine):
                break
            if (now := _look(path)) != last:  # it beats, by whatever clock
                last, since = now, time.monotonic()
            if now is not None and is_abandoned(now[0], time.monotonic() - since, seconds):
                _end(path, now[0])
            else:
                time.sleep(0.1 if now else 0)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(seconds / 6):
            with suppress(OSError, ValueError):
                if path.read_text() == mine:
                    os.utime(path)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield True
    finally:
        stop.set()
        heart.join()
        with suppress(OSError, ValueError):
            if path.read_text() == mine:
                path.unlink()


def is_held(path: Path, seconds: float) -> bool:
    """Whether somebody holds the lease at this moment and was silent for less than ``seconds``."""
    now = _look(path)
    return now is not None and not is_abandoned(now[0], time.time() - now[1] / 1e9, seconds)


def is_abandoned(holder: str, silent: float, seconds: float) -> bool:
    """Whether a holder is dead (on this machine) or has been silent for too long."""
    match holder.split():
        case [host, pid, _] if host == socket.gethostname() and pid.isdecimal():
            return silent > seconds or not _alive(int(pid))
        case [_, _, _]:
            return silent > seconds
    return silent > min(EMPTY_LEASE_SECONDS, seconds)


def _take(path: Path, mine: str) -> bool:
    """Makes a lease, by creating its file; returns False if there is one."""
    try:
        with path.open("x") as file:
            try:
                file.write(mine)
                file.flush()
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        return False
    return True


def _look(path: Path) -> tuple[str, int] | None:
    """Returns a lease's holder and the time of its last beat, in ns; None if it is gone."""
    try:
        info = path.lstat()
        plain = stat.S_ISREG(info.st_mode) and info.st_size < 1000
        holder = path.read_bytes().decode(errors="replace") if plain else ""
    except FileNotFoundError:
        return None
    return holder, info.st_mtime_ns


def _end(path: Path, holder: str) -> None:
    """Removes a lease; if it is another's by now, it is put back."""
    gone = path.with_suffix(f".gone.{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        path.rename(gone)
        now = _look(gone)
        if now is not None and now[0] != holder:
            with suppress(OSError):  # there is a newer one, or no hard links
                os.link(gone, path)
        if gone.is_dir() and not gone.is_symlink():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has so large a number
        return False
    except PermissionError:
        return True
    return True
