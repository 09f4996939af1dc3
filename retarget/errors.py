"""Everything that can go wrong for a user, as one tree. Each error is a sentence, a remedy and an exit code.

RetargetError            1
├── UsageError           2   an option or argument that cannot be
├── InputError           3   a file that cannot be read or used
│   ├── VideoError           not a video, broken, no pictures
│   ├── NobodyFound          no person, or too few frames with one
│   └── AvatarError          unknown, damaged or newer avatar
├── WeightsError         4   weights missing, unreachable or wrong
├── DeviceError          5   the chosen device cannot do it
│   └── OutOfMemory          not even for the smallest way of doing it
└── StorageError         6   disk full, folder not writable
"""

from __future__ import annotations

from typing import ClassVar


class RetargetError(Exception):
    """Base of all errors that are shown to a user as a sentence.

    Args:
        message: what happened and where, one sentence.
        remedy: what to do about it, one sentence; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class UsageError(RetargetError):
    """An option or argument that cannot be."""

    exit_code = 2


class InputError(RetargetError):
    """A file that cannot be read or used."""

    exit_code = 3


class VideoError(InputError):
    """Not a video, broken, or without pictures."""


class NobodyFound(InputError):
    """No person in the picture, or too few frames with one."""


class AvatarError(InputError):
    """An avatar that is unknown, damaged or of a newer version."""


class WeightsError(RetargetError):
    """Weights that are missing, unreachable or have the wrong hash."""

    exit_code = 4


class DeviceError(RetargetError):
    """The chosen device is missing or cannot do the work."""

    exit_code = 5


class OutOfMemory(DeviceError):
    """The memory of the machine or of its GPU does not suffice."""


class StorageError(RetargetError):
    """Disk full, or a folder that cannot be written."""

    exit_code = 6


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of whichever library, says that there was no memory left."""
    names = {cls.__name__ for cls in type(error).__mro__}  # without importing torch or OpenCV
    if names & {"MemoryError", "OutOfMemoryError", "OutOfMemory"}:
        return True
    what = str(error)
    # torch on the CPU; cuDNN and cuBLAS, whose workspaces torch does not allocate itself; OpenCV's error -4.
    return ("RuntimeError" in names and any(words in what for words in _NO_MEMORY)) or (
        type(error).__module__ == "cv2" and getattr(error, "code", 0) == -4
    )


_NO_MEMORY = ("can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
