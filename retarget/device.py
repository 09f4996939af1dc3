"""Where and how precisely to compute, and what to do when memory runs out. Nothing ever falls silently from a GPU to
the CPU."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import torch

from .errors import DeviceError, OutOfMemory, UsageError, out_of_memory
from .types import Progress, Silent

DEVICES: Final = ("auto", "cpu", "cuda", "mps")
PRECISIONS: Final[dict[str, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
Rung = TypeVar("Rung")
Result = TypeVar("Result")
_OTHERS: Final = "Otherwise use --device auto or --device cpu."


@dataclass(frozen=True)
class Compute:
    """A device and the precision of the arithmetic on it.

    device  where tensors live.
    dtype   what autocast computes in; parameters and optimiser states are always float32.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """The context to run a network in; does nothing for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler for one optimiser; active only for float16 on CUDA, where small gradients would vanish."""
        active = self.device.type == "cuda" and self.dtype == torch.float16
        return torch.amp.GradScaler(self.device.type, enabled=active)

    def full_precision(self) -> Compute:
        """The same device in float32: where to go on after non-finite values."""
        return Compute(self.device, torch.float32)

    @property
    def precision(self) -> str:
        """The name of `dtype` on the command line."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    def describe(self) -> str:
        """For records and people, e.g. `cuda (NVIDIA H200), bf16`."""
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)}), {self.precision}"
        if self.device.type == "cpu":
            return f"cpu ({torch.get_num_threads()} threads), {self.precision}"
        return f"{self.device}, {self.precision}"


def choose(device: str = "auto", precision: str = "auto", *, progress: Progress | None = None) -> Compute:
    """The device and precision to compute with.

    Args:
        device: `auto` (cuda, else mps, else cpu), `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto` (bf16 on CUDA devices built for it, fp16 on older ones, fp32 elsewhere), `fp32`, `bf16` or
            `fp16`.
        progress: is warned when `auto` has to leave a GPU of this machine unused.

    Raises:
        UsageError: a name that does not exist.
        DeviceError: a device or precision that was asked for and is not available here.
    """
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"There is no precision “{precision}”.", "Choose auto, fp32, bf16 or fp16.")
    where = _device(device)
    if device == "auto" and where.type == "cpu" and (idle := unused_gpu()):
        (progress or Silent()).warn(idle)
    if precision == "auto":
        dtype = (torch.bfloat16 if native_bf16(where) else torch.float16) if where.type == "cuda" else torch.float32
        return Compute(where, dtype)
    dtype = PRECISIONS[precision]
    if dtype == torch.float16 and where.type != "cuda":
        raise DeviceError(f"fp16 is for CUDA devices, and this runs on {where.type}.", "Use --precision auto.")
    if dtype == torch.bfloat16 and (where.type == "mps" or (where.type == "cuda" and not native_bf16(where))):
        raise DeviceError(f"The device {where} does not compute in bf16.", "Use --precision auto.")
    return Compute(where, dtype)


def native_bf16(device: torch.device) -> bool:
    """Whether a CUDA device has bf16 arithmetic; `torch.cuda.is_bf16_supported` also counts slow emulation."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8


def unused_gpu() -> str | None:
    """A sentence with the remedy when this machine has an NVIDIA GPU that torch cannot use; else None."""
    if torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return None
    if torch.version.cuda is None:
        return "This machine has an NVIDIA GPU, but torch is a CPU build; install its CUDA build to use the GPU."
    return (
        f"This machine has an NVIDIA GPU, but torch (built for CUDA {torch.version.cuda}) cannot reach it; "
        "update the NVIDIA driver, or pass --device cpu."
    )


def _device(name: str) -> torch.device:
    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"There is no device “{name}”.", "Choose auto, cpu, cuda or mps.")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif kind == "cuda":
        if not torch.cuda.is_available():
            if torch.version.cuda is None and torch.version.hip is None:
                raise DeviceError(
                    "CUDA was asked for, but the installed torch is a CPU build.",
                    f"Install torch's CUDA build. {_OTHERS}",
                )
            raise DeviceError(
                "CUDA was asked for, but torch finds no CUDA device or driver.",
                f"Look at what nvidia-smi says. {_OTHERS}",
            )
        if colon and int(number) >= torch.cuda.device_count():
            raise DeviceError(
                f"The device {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices.",
                "Count from 0, or use --device cuda.",
            )
    elif kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("mps was asked for, but this is no Mac with Metal, or torch was built without it.", _OTHERS)
    return torch.device(f"cuda:{number}" if colon else kind)


# ---------------------------------------------------------------------------------------------------- out of memory


class Ladder(Generic[Rung]):
    """Ways of doing one thing that need less and less memory. Whoever is on a lower rung stays there.

    Args:
        what: is done, for people: "drawing the frames".
        rungs: words for people ("half the size") → what `run` gives to its work; the words of the first are not said.
        progress: is warned of each step down.

    said  the sentences about steps down are added to it, for the records.
    """

    def __init__(
        self, what: str, rungs: Mapping[str, Rung], progress: Progress | None = None, said: list[str] | None = None
    ) -> None:
        self.what, self.progress = what, progress or Silent()
        self.rungs = list(rungs.items())
        self.place = 0
        self.said = [] if said is None else said

    @property
    def rung(self) -> Rung:
        """What the rung of now gives to the work."""
        return self.rungs[self.place][1]

    def run(self, work: Callable[[Rung], Result]) -> Result:
        """`work` on the rung of now; whenever memory runs out, again from the start on the next lower one.

        Raises OutOfMemory on the last rung. Whatever else `work` raises passes.
        """
        while True:
            try:
                return work(self.rung)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if self.place + 1 == len(self.rungs):
                    raise no_memory(self.what) from error
            # Only here is the error gone, and with it what its traceback held.
            release()
            self.place += 1
            self.said.append(f"Memory ran out while {self.what}: going on with {self.rungs[self.place][0]}.")
            self.progress.warn(self.said[-1])


@contextmanager
def enough_memory(what: str, remedy: str = "") -> Iterator[None]:
    """Turns every kind of "no memory left" inside into OutOfMemory; `what` was done, for people."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        raise no_memory(what, remedy) from error


def no_memory(what: str, remedy: str = "") -> OutOfMemory:
    """The error that says so."""
    return OutOfMemory(
        f"Memory ran out while {what}.",
        remedy or "Close other programs, or use smaller pictures (--size) or --device cpu.",
    )


def release() -> None:
    """Give memory back that nobody uses any more, to the GPU too."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
