"""
Optional parts, each of which needs a library of its own.
"""

from __future__ import annotations
