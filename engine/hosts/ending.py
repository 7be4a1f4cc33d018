"""How a process of several ends at once: whatever its threads are at, with a line that says why.

A main thread inside LAPACK, a device or a file system that hangs cannot be asked to stop, and the coordination service
of JAX aborts a process that has lost it (SIGABRT, out of a thread of its own). Both end here.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[object] = []  # what C calls must outlive every call
_standard_error = 2


def end_now(message: str, code: int = 1) -> None:
    """Ends the process: what was written stays, nothing else is waited for."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any longer
            pass
    if message:
        try:
            os.write(_standard_error, f"{message}\n".encode())
        except OSError:
            pass
    os._exit(code)


def on_abort(message: Callable[[], str]) -> None:
    """From now on an abort of this process (SIGABRT) ends it with a line and exit code 1, without a core dump.

    Args:
        message: Says why, when it comes to that; called in the thread that aborts.
    """

    def ended(_: int) -> None:
        end_now(message())

    handler = _Handler(ended)
    _kept[:] = [handler]
    # Python's own signal handlers run in the main thread, which may be anywhere; this one runs where abort is called.
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, _Handler], ctypes.c_void_p
    library.signal(signal.SIGABRT, handler)


def on_abort_as_usual() -> None:
    """Takes `on_abort` back."""
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    _kept.clear()


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], str]]:
    """What libraries write on standard error meanwhile is held back: it is lost unless it is asked for.

    Yields:
        Gives what was written so far.
    """
    global _standard_error
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        _standard_error = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 1 << 16, 0).decode(errors="replace")
        finally:
            os.dup2(_standard_error, 2)
            os.close(_standard_error)
            _standard_error = 2
