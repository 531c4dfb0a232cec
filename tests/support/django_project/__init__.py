"""
A small Django project for the tests; `overrides` in a test change its settings.
"""

from __future__ import annotations
