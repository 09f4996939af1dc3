"""The choice of device and precision: what was asked for, or a sentence; never another device."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch

from retarget import device as module
from retarget.device import Compute, Ladder, choose, enough_memory
from retarget.errors import DeviceError, OutOfMemory, UsageError
from retarget.types import Silent


class Warnings(Silent):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def warn(self, message: str) -> None:
        self.seen.append(message)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with these devices, whatever the real one has."""

    def set_up(*, cuda: int = 0, capability: tuple[int, int] = (9, 0), mps: bool = False, built: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Test GPU")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.version, "cuda", "12.8" if built else None)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(module.shutil, "which", lambda _: None)

    set_up()
    return set_up


def test_auto_takes_cuda_then_mps_then_the_cpu(machine: Callable[..., None]) -> None:
    machine(cuda=1, mps=True)
    assert choose().device.type == "cuda"
    machine(mps=True)
    assert choose().device.type == "mps"
    machine()
    assert choose().device.type == "cpu"


def test_auto_precision(machine: Callable[..., None]) -> None:
    machine(cuda=1, capability=(8, 0))
    assert choose().precision == "bf16"
    machine(cuda=1, capability=(7, 5))
    assert choose().precision == "fp16"
    assert choose("cpu").precision == "fp32"
    machine(mps=True)
    assert choose().precision == "fp32"


@pytest.mark.parametrize(
    ("name", "built", "sentence"),
    [
        ("cuda", True, "no CUDA device or driver"),
        ("cuda", False, "is a CPU build"),
        ("cuda:1", True, "no CUDA device"),
        ("mps", True, "no Mac"),
    ],
)
def test_a_missing_device_is_an_error(machine: Callable[..., None], name: str, built: bool, sentence: str) -> None:
    machine(built=built)
    with pytest.raises(DeviceError, match=sentence) as error:
        choose(name)
    assert "--device cpu" in error.value.remedy


def test_a_gpu_that_is_not_there(machine: Callable[..., None]) -> None:
    machine(cuda=2)
    assert choose("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="there are 2 CUDA devices"):
        choose("cuda:2")


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp16"), ("mps", "fp16"), ("mps", "bf16"), ("cuda", "bf16")])
def test_a_precision_that_the_device_lacks(machine: Callable[..., None], device: str, precision: str) -> None:
    machine(cuda=1, capability=(7, 5), mps=True)
    with pytest.raises(DeviceError) as error:
        choose(device, precision)
    assert error.value.remedy == "Use --precision auto."


@pytest.mark.parametrize("name", ["tpu", "", "cpu:1", "cuda:x", "cuda:", "auto:0", "CUDA"])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(UsageError, match="There is no device"):
        choose(name)


def test_names_of_no_precision() -> None:
    with pytest.raises(UsageError, match="There is no precision"):
        choose("cpu", "fp8")


@pytest.mark.parametrize(("built", "sentence"), [(True, "update the NVIDIA driver"), (False, "install its CUDA build")])
def test_a_gpu_left_unused_is_told(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, built: bool, sentence: str
) -> None:
    machine(built=built)
    monkeypatch.setattr(module.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    told = Warnings()
    choose("auto", progress=told)
    assert len(told.seen) == 1
    assert sentence in told.seen[0]
    choose("cpu", progress=told)  # was asked for: nothing to tell
    assert len(told.seen) == 1


def test_autocast_computes_in_the_chosen_precision() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with choose("cpu", "fp32").autocast():
        assert layer(x).dtype == torch.float32
    with choose("cpu", "bf16").autocast():
        assert layer(x).dtype == torch.bfloat16


def test_only_fp16_on_cuda_scales_the_loss(machine: Callable[..., None]) -> None:
    assert not choose("cpu", "fp32").scaler().is_enabled()
    assert not choose("cpu", "bf16").scaler().is_enabled()
    # Without a GPU torch disables the scaler itself, so ask for what it was told.
    seen = {}
    machine(cuda=1)
    for name in ("bf16", "fp16"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.amp, "GradScaler", lambda device, enabled, n=name: seen.update({n: (device, enabled)}))
            choose("cuda", name).scaler()
    assert seen == {"bf16": ("cuda", False), "fp16": ("cuda", True)}


def test_full_precision_stays_on_the_device() -> None:
    half = Compute(torch.device("cpu"), torch.bfloat16)
    assert half.full_precision() == Compute(torch.device("cpu"), torch.float32)


def test_descriptions(machine: Callable[..., None]) -> None:
    machine(cuda=1, mps=True)
    assert choose("cuda").describe() == "cuda (Test GPU), bf16"
    assert choose("mps").describe() == "mps, fp32"
    assert choose("cpu").describe().startswith("cpu (")
    assert choose("cpu").describe().endswith("), fp32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_trains_in_its_precision() -> None:
    compute = choose("cuda")
    layer = torch.nn.Linear(8, 8, device=compute.device)
    scaler, optimiser = compute.scaler(), torch.optim.SGD(layer.parameters(), 0.1)
    with compute.autocast():
        out = layer(torch.ones(2, 8, device=compute.device))
    assert out.dtype == compute.dtype
    scaler.scale(out.float().mean()).backward()
    scaler.step(optimiser)
    assert all(p.isfinite().all() for p in layer.parameters())


# ---------------------------------------------------------------------------------------------------- out of memory


def hungry(enough: int, error: type[Exception] = MemoryError) -> Callable[[int], int]:
    def work(size: int) -> int:
        if size > enough:
            raise error("can't allocate memory")
        return size

    return work


def test_a_ladder_goes_down_as_far_as_it_must_and_stays_there() -> None:
    told, notes = Warnings(), ["before"]
    ladder = Ladder("painting", {"all": 4, "half": 2, "a quarter": 1}, told, notes)
    assert ladder.run(hungry(9)) == 4
    assert told.seen == []
    assert ladder.run(hungry(3)) == 2
    assert ladder.run(hungry(9)) == ladder.rung == 2
    assert ladder.run(hungry(1)) == 1
    sentences = [f"Memory ran out while painting: going on with {words}." for words in ("half", "a quarter")]
    assert told.seen == sentences
    assert notes == ["before", *sentences]


def test_the_lowest_rung_ends_with_a_sentence_that_a_ladder_above_understands() -> None:
    inner = Ladder("painting", {"all": 4, "half": 2})
    with pytest.raises(OutOfMemory, match="Memory ran out while painting") as error:
        inner.run(hungry(1))
    assert error.value.exit_code == 5
    assert error.value.remedy
    outer = Ladder("everything", {"large": 1, "small": 3})
    assert outer.run(lambda enough: Ladder("painting", {"all": 4, "half": 2}).run(hungry(enough))) == 2


def test_other_errors_are_not_a_ladders_business() -> None:
    ladder = Ladder("painting", {"all": 4, "half": 2})
    with pytest.raises(ValueError, match="can't allocate"):
        ladder.run(hungry(1, ValueError))
    assert ladder.rung == 4


def test_what_failed_is_gone_before_the_next_attempt() -> None:
    alive: list[weakref.ref[torch.nn.Module]] = []

    def work(size: int) -> int:
        assert all(ref() is None for ref in alive)
        large = torch.nn.Linear(size, size)
        alive.append(weakref.ref(large))
        return hungry(1)(size)

    assert Ladder("painting", {"all": 4, "half": 2, "least": 1}).run(work) == 1
    assert len(alive) == 3


def test_enough_memory_names_what_was_done() -> None:
    with pytest.raises(OutOfMemory, match="Memory ran out while reading") as error, enough_memory("reading", "Rest."):
        hungry(0, RuntimeError)(1)
    assert error.value.remedy == "Rest."
    with pytest.raises(OutOfMemory, match="painting"), enough_memory("reading"):
        Ladder("painting", {"all": 1}).run(hungry(0))  # who knows more says it
    with pytest.raises(ValueError, match="x"), enough_memory("reading"):
        raise ValueError("x")
