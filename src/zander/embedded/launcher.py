"""The script between us and a child program: drops root, binds the program to our life, and becomes it.

`child.py` runs it by its path, in a Python without site packages, so it imports little (20 ms in all).
A `preexec_fn` would do its work between fork and exec of a process with threads, where any lock may be held.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 27, 28, 47, 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522


def launch(parent: int, orphan_signal: int, account: str, command: list[str]) -> None:
    """Become `command`, as `account` ("uid:gid", or "" for the one we are), bound to the life of `parent`.

    Returns only when the parent is already gone. Exits with a sentence when the account cannot run the command.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded while we still may
    if account:
        uid, gid = map(int, account.split(":"))
        _drop_root(uid, gid, libc)
        _reach(command, uid, libc)
    if libc is not None:
        libc.prctl(PR_SET_PDEATHSIG, orphan_signal)  # last, since a change of uid clears it
        if os.getppid() != parent:  # it died before the line above
            return
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would hand that on
        signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)


def _drop_root(uid: int, gid: int, libc: ctypes.CDLL | None) -> None:
    """Become another account; what root was capable of stays until exec, which leaves the ambient capabilities only.

    Without SECBIT_NO_SETUID_FIXUP, access(2) would disregard capabilities too, and PostgreSQL asks it about its
    own programs. It takes CAP_SETPCAP, which containers have unless it was taken from them.
    """
    if libc is not None:
        libc.prctl(PR_SET_SECUREBITS, libc.prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) | SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:  # the capability was taken from us, or the user namespace has no such account
        sys.exit(f"root cannot become uid {uid} here ({error.strerror}): run Zander as an ordinary account")


def _reach(command: list[str], uid: int, libc: ctypes.CDLL | None) -> None:
    """Make sure that the account gets to the program and to the paths among its arguments, or exit.

    Below a 0700 directory of root's (/root, with a virtualenv or the data in it) it would not. They must stay
    where they are, and opening the directory is not ours to do. So in that case only, the program keeps one
    capability: to pass and read such directories or, where a container lacks it or the files themselves are
    0700 (a umask of 077), the wider one.
    """
    for capability in (None, CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if libc is not None and not _keep_only(capability, libc):
            continue
        if not (closed := _out_of_reach(command)):
            return
    sys.exit(f"uid {uid} cannot get to {closed}: open the directories above it, or run Zander as an ordinary account")


def _keep_only(capability: int | None, libc: ctypes.CDLL) -> bool:
    """Use and keep across exec one capability, or none; false when we do not have it."""
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the high halves
    libc.capget(header, sets)
    bit = 0 if capability is None else 1 << capability
    sets[:] = [bit, sets[1], bit, 0, 0, 0]
    if libc.capset(header, sets) != 0:
        return False
    return capability is None or libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0


def _out_of_reach(command: list[str]) -> str | None:
    """Find the first path that the account, with the capability it has now, cannot use."""
    if not os.access(command[0], os.R_OK | os.X_OK):
        return command[0]
    return next((word for word in command if word.startswith("/") and not os.access(word, os.R_OK)), None)


if __name__ == "__main__":
    launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
