"""
Another name of `dotmac_tasks`, its submodules included, for good and without a warning.

Importing it imports nothing; the first name that is asked for does.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dotmac_tasks import *  # noqa: F403 - whatever is public there is public here
    from dotmac_tasks import __all__ as __all__
    from dotmac_tasks import __version__ as __version__

_TARGET = "dotmac_tasks"
_OURS = f"{__name__}."
# What Python itself looks for in a module is not asked of the target, but for these.
_SPECIAL = ("__all__", "__version__")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != _TARGET:
            raise
    raise ImportError(
        f"{__name__} is another name of {_TARGET}, which is not installed. "
        "Install it with: pip install dotmac-tasks",
        name=_TARGET,
    )


if not TYPE_CHECKING:  # or a type checker would take any name for one of this module

    def __getattr__(name: str) -> object:
        if not name.startswith("__") or name in _SPECIAL:
            target = _import(_TARGET)
            if hasattr(target, name):
                return getattr(target, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *getattr(sys.modules.get(_TARGET), "__all__", ())})


class _Alias(MetaPathFinder, Loader):
    """
    Gives a submodule of `dotmac_tasks` under the name that it has here.

    It is the same module and not a copy, so that its classes are the same. Has no state, so it
    may be shared between threads.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """
        Find what `dotmac_tasks` has under the rest of the name.
        """
        if not fullname.startswith(_OURS):
            return None
        _import(_TARGET)
        found = importlib.util.find_spec(f"{_TARGET}.{fullname.removeprefix(_OURS)}")
        return found and ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """
        Return the module itself, and note how it was found, which Python overwrites.
        """
        module = _import(f"{_TARGET}.{spec.name.removeprefix(_OURS)}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """
        Put back how it was found; it ran when it was imported under its own name.
        """
        module.__spec__ = module.__spec__ and module.__spec__.loader_state


# Before all others: the modules have the path of `dotmac_tasks`, on which copies would be found.
sys.meta_path.insert(0, _Alias())
