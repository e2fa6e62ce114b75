"""Runs one command and kills whatever it leaves behind: `python -I -S reaper.py COMMAND [ARGUMENT ...]`.

Standard input is a pipe whose other end the owner holds.  When it closes (the owner closed it, ended, or was killed),
the command and all its descendants are killed, even in other sessions.  SIGTERM and SIGUSR2 are passed on to the
command; the reaper ends like the command, with the same exit code or signal, but with OUT_OF_MEMORY if the kernel
killed it because memory ran out.  Uses only the standard library, because it runs isolated.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
OUT_OF_MEMORY = 13  # ExitCode.OUT_OF_MEMORY
# of the machine, and of the container as cgroups of version 2 and 1 count them
_KILL_COUNTS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def main(command: list[str]) -> int:
    """The outer of two processes: the owner's child.  It only waits for the inner one, which does the work.

    There are two because some owners kill their children when they exit (Ray's workers do).  The inner one is not a
    child of the owner; it notices, and still kills everything.
    """
    outer = os.getpid()
    inner = os.fork()
    if inner == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
        os._exit(_supervise(command, outer))
    _pass_on(inner)
    _ignore_terminal()
    return _end_like(os.waitpid(inner, 0)[1])


def _supervise(command: list[str], outer: int) -> int:
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for waking in (signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(waking, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of the reaper, so it can find them
    kills = out_of_memory_kills()
    child = _start(command)
    _pass_on(child)
    _ignore_terminal()
    status = None
    while status is None:
        ready, _, _ = select.select([0, wake_read], [], [], 1.0)
        if wake_read in ready:
            os.read(wake_read, 4096)
        if (0 in ready and not os.read(0, 4096)) or os.getppid() != outer:
            _send(child, signal.SIGKILL)
            _end_descendants()
            return _end_like(signal.SIGKILL)
        status = _reap(child)
    _end_descendants()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and out_of_memory_kills() > kills:
        os.write(2, b"killed by the kernel: out of memory\n")
        return OUT_OF_MEMORY
    return _end_like(status)


def out_of_memory_kills(files: tuple[str, ...] = _KILL_COUNTS) -> int:
    """How many processes the kernel has killed because memory ran out, on this machine and in this container."""
    count = 0
    for name in files:
        try:
            with open(name, "rb") as file:
                count += sum(int(line.split()[1]) for line in file if line.startswith(b"oom_kill "))
        except (OSError, ValueError, IndexError):
            continue
    return count


def _start(command: list[str]) -> int:
    reaper = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        signal.set_wakeup_fd(-1)
        for changed in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(changed, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # if the reaper itself is killed
        if os.getppid() != reaper:
            os._exit(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)  # the pipe belongs to the reaper alone
        os.execvpe(command[0], command, os.environ)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _reap(child: int) -> int | None:
    """Reap the processes that ended; returns the status of the command if it is one of them."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            status = ended


def _end_descendants(rounds: int = 200) -> None:
    """Kill what is left below the reaper, until nothing is."""
    for _ in range(rounds):
        left = descendants(os.getpid())
        if not left:
            return
        for pid in left:
            _send(pid, signal.SIGKILL)
        time.sleep(0.01)
        _reap(-1)


def descendants(root: int) -> list[int]:
    """Live processes below `root`."""
    children: dict[int, list[int]] = {}
    zombies: set[int] = set()
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:  # no /proc: the process group is all that can be reached
        return []
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
        if fields[0] == b"Z":
            zombies.add(int(name))
    # Through zombies too: the first thread of a program may be dead while others are still ending, and until then
    # its children are below it.
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return [pid for pid in found if pid not in zombies]


def _end_like(status: int) -> int:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command left its core, if any
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(status)


def _pass_on(pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, _: _send(pid, number))


def _ignore_terminal() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere only the pipe works."""
    function = getattr(ctypes.CDLL(None), "prctl", None)
    if function is not None:
        function(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
