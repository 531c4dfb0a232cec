"""
What a project's module with its codec looks like, for settings that name it.
"""

from __future__ import annotations

from support.codecs import MaskingCodec

codec = MaskingCodec()
