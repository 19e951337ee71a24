"""The script between us and a child program: drops root, binds the program to our life, and becomes it.

`child.py` runs it by its path, in a Python without site packages, so it imports little (20 ms in all).
A `preexec_fn` would do its work between fork and exec of a process with threads, where any lock may be held.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522


def launch(parent: int, orphan_signal: int, account: str, command: list[str]) -> None:
    """Become `command`, as `account` ("uid:gid", or "" for the one we are), bound to the life of `parent`.

    Returns only when the parent is already gone.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded while we still may
    if account:
        uid, gid = map(int, account.split(":"))
        _drop_root(uid, gid, paths=[word for word in command if word.startswith("/")], libc=libc)
    if libc is not None:
        libc.prctl(PR_SET_PDEATHSIG, orphan_signal)  # last, since a change of uid clears it
        if os.getppid() != parent:  # it died before the line above
            return
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would hand that on
        signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)


def _drop_root(uid: int, gid: int, *, paths: list[str], libc: ctypes.CDLL | None) -> None:
    """Become another account, one that still gets to `paths`.

    Below a 0700 directory of root's (/root, with a virtualenv or the data in it) it would not. The data must
    stay where it is, and opening the directory is not ours to do. So in that case only, the program keeps one
    capability: to pass and read such directories or, in a container without it, the wider one Docker grants.
    """
    if libc is not None:
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if libc is not None and not all(os.access(path, os.R_OK) for path in paths):  # asks without capabilities
        any(_keep_capability(number, libc) for number in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE))


def _keep_capability(number: int, libc: ctypes.CDLL) -> bool:
    """Keep one capability, and no other, across the coming exec; false when we do not have it."""
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(*[1 << number] * 3)  # effective, permitted, inheritable; then the high halves
    if libc.capset(header, sets) != 0:
        return False
    return bool(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) == 0)


if __name__ == "__main__":
    launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
