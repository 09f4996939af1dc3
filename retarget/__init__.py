"""Make an mp4 of yourself doing what somebody else does in another video.

    import retarget
    me = retarget.personalize("me.mp4")
    retarget.drive(me, "dance.mp4", "out.mp4")

The public names are loaded when they are first used; `import retarget` itself loads nothing heavy.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if not (3, 10) <= tuple(sys.version_info[:2]) < (3, 13):
    _version = ".".join(map(str, sys.version_info[:2]))
    _sentence = f"retarget needs Python 3.10, 3.11 or 3.12; this is {_version} ({sys.executable})."
    if sys.argv[:1] == ["-m"]:  # `python -m retarget`: a sentence is enough
        raise SystemExit(_sentence)
    raise ImportError(_sentence)

# Threads that wait should sleep: on a machine that does other work too, spinning ones make torch ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from .avatar import Avatar
    from .drive import DriveOptions, drive
    from .personalize import PersonalizeOptions, personalize

__version__ = "0.1.0"
__all__ = ["Avatar", "DriveOptions", "PersonalizeOptions", "__version__", "drive", "personalize"]

_HOME = {
    "Avatar": "avatar",
    "DriveOptions": "drive",
    "PersonalizeOptions": "personalize",
    "drive": "drive",
    "personalize": "personalize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`retarget.drive` and `retarget.personalize` are the functions, whoever imports the modules of these names first.

    Python binds a submodule to its package's attribute after loading it; here the function takes that place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("drive", "personalize") and isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
