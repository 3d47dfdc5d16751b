"""Checks of the machine that both sides share: disk, private files, clock, processes."""

import ctypes
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

import psutil

from wardround.deploy.doctor.finding import Finding, bad, good
from wardround.pages import size

LEAST_FREE = 2 * 10**9
"""Bytes that should be free: room for some snapshots, models on their way and logs."""
_TIME_ERROR = 5


def disk(folder: Path, least: int = LEAST_FREE) -> Finding:
    """Whether there is room, and whether it can be written to."""
    try:
        usage, inodes = shutil.disk_usage(folder), os.statvfs(folder)
    except OSError as error:
        return bad("disk", f"{folder} cannot be looked at", error.strerror or "", "check that the disk is there")
    if not os.access(folder, os.W_OK):
        return bad(
            "disk",
            f"{folder} cannot be written",
            "it belongs to another user, or the disk is mounted for reading only",
            "run this as the user that serves; look at the mount",
        )
    if usage.free < least:
        return bad(
            "disk",
            f"only {size(usage.free)} are free at {folder}",
            f"{size(usage.used)} of {size(usage.total)} are used",
            f"free some space: at least {size(least)} should be left",
        )
    if inodes.f_files and inodes.f_favail < 1000:
        return bad("disk", f"{folder} has no room for more files", "the disk has too many small files", "remove some")
    return good("disk", f"{size(usage.free)} free")


def private(name: str, paths: Iterable[Path]) -> Finding:
    """Whether private files are there and can be read by their owner alone."""
    for path in paths:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            return bad(name, f"{path} cannot be read", error.strerror or "", "restore it from a copy, or set up anew")
        if mode & 0o077:
            return bad(
                name,
                f"{path} can be read by others",
                f"its permissions are {mode:03o}",
                f"chmod 600 {path}; if others could have read it, make a new one",
            )
    return good(name, "private")


def synchronised() -> bool | None:
    """Whether the kernel says that its clock follows a time server; None where it says nothing."""
    try:
        # With all its fields zero, the first of which says what to change, the call only reads.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def clock() -> Finding:
    """A machine whose clock nobody sets drifts apart from the others."""
    state = synchronised()
    if state is None:
        return good("clock", "it cannot be told whether it follows a time server")
    return good("clock", "follows a time server" if state else "does not follow a time server (NTP): see to it")


def is_alive(pid_file: Path) -> bool | None:
    """Whether the process in a pid file lives; None without such a file."""
    try:
        number = int(pid_file.read_text(encoding="utf-8"))
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except FileNotFoundError:
        return None
    except (ValueError, OSError, psutil.Error):
        return False
