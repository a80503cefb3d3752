"""Becomes another program, one that ends when its parent does. Run by path, by `broker`.

    python -I -S bind_to_parent.py PARENT_PID PROGRAM [ARGUMENT ...]

A broker that outlived a killed coordinator would hold its port. Linux can signal a child on its parent's
death; elsewhere the program simply runs. Imports nothing of ours, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Ask for SIGTERM on the parent's death, then become the program."""
    parent, *command = arguments
    if sys.platform == "linux":
        # The setting survives exec.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            return 1  # it died meanwhile
    os.execv(command[0], command)  # noqa: S606 - an argument list of our own, no shell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
