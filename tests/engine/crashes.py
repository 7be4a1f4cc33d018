"""The end of a process at any moment, as far as its files go."""

import os
import sys
import threading

import pytest

_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


class Crash(BaseException):
    """The end of a process, as far as its files go."""


@pytest.fixture(scope="session")
def crashes():
    """Ends what is called before its n-th change of the file system; says whether it came that far.

    An audit hook stays for the life of the process: this one does nothing outside of a call.
    """
    left, thread = 0, threading.get_ident()

    def watch(event, details):
        nonlocal left
        if left and event in _CHANGES and threading.get_ident() == thread:
            if event != "open" or details[2] & (os.O_WRONLY | os.O_RDWR):
                left -= 1
                if not left:
                    raise Crash

    def crashes(step, function, *args, **options):
        nonlocal left
        left = step
        try:
            function(*args, **options)
        except Crash:
            return True
        finally:
            left = 0
        return False

    sys.addaudithook(watch)
    return crashes
