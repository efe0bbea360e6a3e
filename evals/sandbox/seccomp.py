"""The process that runs one program that a model wrote: limits and a filter on system calls, then the program.

Run by sandbox/run.py as a script; it uses the standard library alone. The filter (seccomp) is a list of the calls
that plain Python needs to compute and to read files; the kernel refuses all others (EPERM), whatever the program does
to the interpreter. So the program, and every thread of it, can:
    - open no socket, and has none;
    - start no process, and send no signal to another;
    - open no file for writing, make, rename or delete none, and change nothing of one;
    - raise no limit: memory (address space), processor time, open files.
It can read files that its user can read, and burn its time. What it prints is thrown away. The tests run inside it, so
a program that is written to forge its verdict can; a model that does not know this file does not.
"""

import ctypes
import os
import platform
import sys

# The calls without conditions: name -> number on x86_64 and on aarch64 (None: not there). From the kernel's unistd.h.
PLAIN: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "access": (21, None), "pipe": (22, None),
    "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23),
    "dup2": (33, None), "pause": (34, None), "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None),
    "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17),
    "chdir": (80, 49), "readlink": (89, None), "gettimeofday": (96, 169), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getgroups": (115, 158),
    "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "dup3": (292, 24),
    "pipe2": (293, 59), "getcpu": (309, 168), "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293),
    "faccessat2": (439, 439),
}  # fmt: skip
# The calls that are allowed for some arguments only, see `_conditions`.
CHECKED: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56), "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129),
    "tgkill": (234, 131), "prlimit64": (302, 261), "ioctl": (16, 29), "fcntl": (72, 25), "arch_prctl": (158, None),
    "prctl": (157, 167),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # place in the tables, AUDIT_ARCH of linux/audit.h

LD, JEQ, JGE, JSET, RET = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h: load a word, jumps, return
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026  # linux/seccomp.h; the last two: an errno
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CLONE_THREAD = 0x10000
TERMINAL = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
DESCRIPTOR = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC

Step = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def instructions(machine: str, pid: int) -> list[Step]:
    """The filter as a classic BPF program over linux/seccomp.h's seccomp_data; what it does not name is refused."""
    column, arch = MACHINES[machine]
    steps: list[Step] = [(LD, 0, 0, 4), (JEQ, 1, 0, arch), (RET, 0, 0, KILL), (LD, 0, 0, 0)]
    steps += [(JGE, 0, 1, 0x40000000), (RET, 0, 0, KILL)]  # the x32 numbers of x86_64
    for numbers in PLAIN.values():
        if (number := numbers[column]) is not None:
            steps += [(JEQ, 0, 1, number), (RET, 0, 0, ALLOW)]
    for name, test in _conditions(pid).items():
        if (number := CHECKED[name][column]) is not None:
            steps += [(JEQ, 0, len(test), number), *test]
    return [*steps, (RET, 0, 0, EPERM)]


def _conditions(pid: int) -> dict[str, list[Step]]:
    """For each call of CHECKED what decides; every list ends with a return."""
    no: Step = (RET, 0, 0, EPERM)
    return {
        "open": _without(1, WRITES),
        "openat": _without(2, WRITES),
        "clone": [_word(0), (JSET, 0, 1, CLONE_THREAD), (RET, 0, 0, ALLOW), (RET, 0, 0, EPERM)],  # threads alone
        "clone3": [(RET, 0, 0, ENOSYS)],  # its flags are in memory, out of sight; glibc then uses clone
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        # Asking for the limits of itself, not setting them: no new ones (a null pointer, both halves).
        "prlimit64": [_word(2), (JEQ, 1, 0, 0), no, (LD, 0, 0, 16 + 8 * 2 + 4), (JEQ, 1, 0, 0), no, *_one_of(0, (0,))],
        "ioctl": _one_of(1, TERMINAL),
        "fcntl": _one_of(1, DESCRIPTOR),
        "arch_prctl": _one_of(0, (0x1002,)),  # ARCH_SET_FS: a new thread's own storage
        "prctl": _one_of(0, (15,)),  # PR_SET_NAME, of a thread
    }


def _word(argument: int) -> Step:
    """Load the lower half of an argument (both machines are little-endian)."""
    return LD, 0, 0, 16 + 8 * argument


def _without(argument: int, bits: int) -> list[Step]:
    return [_word(argument), (JSET, 0, 1, bits), (RET, 0, 0, EPERM), (RET, 0, 0, ALLOW)]


def _one_of(argument: int, values: tuple[int, ...]) -> list[Step]:
    tests = [step for value in values for step in ((JEQ, 0, 1, value), (RET, 0, 0, ALLOW))]
    return [_word(argument), *tests, (RET, 0, 0, EPERM)]


def limit(seconds: int, memory: int) -> None:
    """Limits of this process: address space in bytes, processor time, no file grows, few files, no core dump."""
    import resource

    for kind, value in (
        (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, which tells it from another end


def contain(machine: str) -> None:
    """Put the filter on this process, for good.

    Raises:
        OSError: the kernel has no seccomp, or does not let this process use it.
    """

    class Filter(ctypes.Structure):
        _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_uint16), ("filter", ctypes.POINTER(Filter))]

    steps = instructions(machine, os.getpid())
    program = Program(len(steps), (Filter * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    # PR_SET_NO_NEW_PRIVS, without which only root may; then PR_SET_SECCOMP with SECCOMP_MODE_FILTER.
    for call in ((38, ctypes.c_ulong(1), zero), (22, ctypes.c_ulong(2), ctypes.byref(program))):
        if libc.prctl(*call, zero, zero):
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """FILE TOKEN DESCRIPTOR SECONDS BYTES: run FILE and write TOKEN and a verdict to the descriptor.

    `passed` where it ran to its end; `failed: KIND` where it raised; nothing where it ended the process itself.
    """
    file, token, descriptor, seconds, memory = sys.argv[1:]
    out, write, leave = int(descriptor), os.write, os._exit
    with open(file, encoding="utf-8") as source:
        text = source.read()
    os.unlink(file)
    try:
        limit(int(seconds), int(memory))
        contain(platform.machine())
    except (OSError, ValueError, KeyError) as error:
        write(out, f"{token} not contained: {type(error).__name__}: {error}".encode())
        leave(1)
    del sys.argv[1:]
    try:
        exec(compile(text, "program", "exec"), {})
        verdict = "passed"
    except BaseException as error:  # sys.exit() too: the tests after it were not run
        verdict = f"failed: {type(error).__name__[:60]}"
    write(out, f"{token} {verdict}".encode())
    leave(0)


if __name__ == "__main__":
    main()
