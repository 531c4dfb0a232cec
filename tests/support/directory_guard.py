"""
A watcher that cleans up after a test process however that one ends.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

# Reads until the test process is gone, then kills the server it left behind. The number in the pid
# file may be another process's by then, which its working directory tells; a system without /proc
# is trusted.
_SCRIPT = """
cat >/dev/null
pid=$(cat "$1/server.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    if [ ! -e /proc/self ] || [ "$(readlink "/proc/$pid/cwd")" = "$1" ]; then
        kill -9 "$pid" 2>/dev/null
    fi
fi
rm -rf "$1"
"""


class DirectoryGuard:
    """
    A new private directory that outlives this process by an instant only.

    The process that wrote `server.pid` there and works in it goes with it. One owner closes it.

    A parent-death signal would be shorter, but it fires when the starting *thread* ends, and tests
    do start servers from threads.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "guard", str(directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests alone
        )

    def close(self) -> None:
        """
        Remove the directory and wait until it is gone.
        """
        self._process.communicate()  # closes the pipe, as the end of this process would
