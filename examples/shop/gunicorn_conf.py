"""
How gunicorn runs the shop; workers and threads come from the command line.
"""

from __future__ import annotations

worker_class = "gthread"
# A killed worker is replaced by the master; these settings only bound what hangs.
timeout = 30
graceful_timeout = 5
keepalive = 2
# No file outside the demo's own folder: the management socket would live in the home.
control_socket_disable = True
