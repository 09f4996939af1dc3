"""LPIPS and FID: measured where they can be, left out with a sentence where not; nothing is downloaded."""

from __future__ import annotations

import hashlib
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from retarget import perceptual_metrics as pm
from retarget.types import Image
from retarget.video import open_writer

CPU = torch.device("cpu")


class FakeTrunk(torch.nn.Module):
    """Named as in the library `lpips`."""

    def __init__(self) -> None:
        super().__init__()
        self.slice1 = torch.nn.Sequential()
        self.slice1.add_module("0", torch.nn.Conv2d(3, 1, 1))


class FakeLPIPS(torch.nn.Module):
    """The bias of its trunk is what it measures; knows whether it was asked not to download."""

    def __init__(self, net: str, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, pnet_rand, verbose) == ("alex", True, False)
        self.net = FakeTrunk()

    def forward(self, shown: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        assert max(x.abs().max() for x in (shown, true)) <= 1
        return (shown - true).abs().mean((1, 2, 3), keepdim=True) + self.net.slice1[0].bias


class FakeInception(torch.nn.Module):
    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features == ["2048"]
        assert Path(feature_extractor_weights_path).is_file()

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor]:
        assert pictures.dtype == torch.uint8
        return (pictures.float().mean((2, 3)),)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both libraries, and the folder of torch's downloads with the weights of both."""
    lpips, fidelity = ModuleType("lpips"), ModuleType("torch_fidelity")
    inside = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    lpips.LPIPS, inside.FeatureExtractorInceptionV3 = FakeLPIPS, FakeInception  # type: ignore[attr-defined]
    for module in (lpips, fidelity, inside):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("it downloads"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    tensors = {"features.0.weight": torch.zeros(1, 3, 1, 1), "features.0.bias": torch.tensor([0.5]), "classifier": 1}
    for constant in ("ALEXNET", "INCEPTION"):
        torch.save(tensors, folder / "new")
        name = f"{constant.lower()}-{hashlib.sha256((folder / 'new').read_bytes()).hexdigest()[:8]}.pth"
        (folder / "new").rename(folder / name)
        monkeypatch.setattr(pm, constant, f"https://example.org/{name}")
    return folder


def write(path: Path, frames: list[Image]) -> Path:
    with open_writer(path, frames[0].shape[1::-1], Fraction(25), crf=0) as append:
        for frame in frames:
            append(frame)
    return path


def flat(*values: int, size: tuple[int, int] = (64, 48)) -> list[Image]:
    return [np.full((*size, 3), v, np.uint8) for v in values]


def test_both(hub: Path, tmp_path: Path) -> None:
    found = pm.find(CPU)
    assert found.notes == ()
    truth = write(tmp_path / "truth.mp4", flat(*range(100, 120)))
    close = write(tmp_path / "close.mp4", flat(*range(110, 130), size=(128, 96)))  # another size
    same, other = found.score(truth, truth), found.score(close, truth)
    assert same == {"lpips": 0.5, "fid": 0.0}  # 0.5: the trunk's bias was loaded
    assert other["lpips"] == pytest.approx(0.5 + 10 / 127.5, abs=0.02)
    assert other["fid"] == pytest.approx(3 * 10**2, rel=0.05)
    assert found.score(close, truth, every=30)["fid"] is None  # one frame has no covariance


def test_frames_are_those_of_the_other_figures(hub: Path, tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.mp4", flat(*[0] * 12))
    odd = write(tmp_path / "odd.mp4", flat(*[0, 255, 255] * 4))
    found = pm.find(CPU)
    assert found.score(odd, truth, every=3)["lpips"] == pytest.approx(0.5, abs=0.02)
    assert found.score(odd, truth)["lpips"] == pytest.approx(0.5 + 4 / 3, abs=0.02)


def test_without_the_libraries(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lpips", "torch_fidelity"):
        monkeypatch.setitem(sys.modules, name, None)
    found = pm.find(CPU)
    assert [note.split(":")[0] for note in found.notes] == ["LPIPS is left out", "FID is left out"]
    assert all("pip install 'retarget[metrics]'" in note for note in found.notes)
    assert found.score(Path("a"), Path("b")) == {}  # not even read


def test_without_or_with_wrong_weights(hub: Path, tmp_path: Path) -> None:
    alexnet, inception = sorted(hub.iterdir())
    alexnet.unlink()
    inception.write_bytes(b"cut short")
    found = pm.find(CPU)
    assert pm.ALEXNET in found.notes[0]
    assert str(hub) in found.notes[0]
    assert "wrong sha256" in found.notes[1]
    assert (found.lpips, found.inception) == (None, None)


def test_one_of_both(hub: Path, tmp_path: Path) -> None:
    next(hub.glob("inception*")).unlink()
    truth = write(tmp_path / "truth.mp4", flat(1, 2))
    found = pm.find(CPU)
    assert list(found.score(truth, truth)) == ["lpips"]
    assert len(found.notes) == 1


@pytest.mark.parametrize("counts", [(40, 30), (5, 9)])
def test_frechet_distance(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mix: Any = rng.normal(size=(12, 12))
    a, b = rng.normal(1, 2, (counts[0], 12)), rng.normal(0, 1, (counts[1], 12)) @ mix
    sa, sb = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.maximum(np.linalg.eigvals(sa @ sb).real, 0)).sum()  # of the definition
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb) - 2 * root
    assert pm.frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
