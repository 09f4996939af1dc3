"""LPIPS and FID, where their libraries and weights are on this machine: nothing is downloaded here.

LPIPS  Zhang et al. 2018, AlexNet: the library `lpips`, which brings its own last layer.
FID    Heusel et al. 2017, Inception of 2015-12-05: the library `torch-fidelity`. The frames of one clip are few for its
       2048 figures, so it compares methods on the same clip, and nothing else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from .types import Progress, Silent

if TYPE_CHECKING:
    import torch

FIGURES: Final = ("lpips", "fid")
ALEXNET: Final = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
INCEPTION: Final = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
BATCH: Final = 8


@dataclass(frozen=True)
class Perceptual:
    """The networks of this machine.

    lpips      two (N, 3, H, W) float32 RGB batches in -1..1 → N distances; None when it is not here.
    inception  (N, 3, H, W) uint8 RGB → (N, 2048); None when it is not here.
    device     where both are.
    notes      one sentence for each that is left out, with the remedy.
    """

    lpips: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    inception: Callable[[torch.Tensor], torch.Tensor] | None
    device: torch.device
    notes: tuple[str, ...]

    def score(
        self, produced: Path, truth: Path, every: int = 1, progress: Progress | None = None
    ) -> dict[str, float | None]:
        """The figures that can be measured, by their names in `FIGURES`: `lpips`, the mean over the frames; `fid`, None
        for fewer than two frames. Frames as `metrics.score` takes them."""
        if self.lpips is None and self.inception is None:
            return {}
        import torch

        (progress or Silent()).stage(f"Looking at {produced.name}", None)
        distances: list[float] = []
        features: tuple[list[Any], list[Any]] = [], []
        for pictures in _pairs(produced, truth, every):
            both = torch.from_numpy(pictures).to(self.device).permute(0, 1, 4, 2, 3)  # 2, N, 3, H, W
            with torch.inference_mode():
                if self.lpips is not None:
                    shown, true = both.float() / 127.5 - 1
                    distances += self.lpips(shown, true).flatten().tolist()
                if self.inception is not None:
                    for kept, batch in zip(features, both, strict=True):
                        kept.append(self.inception(batch).double().cpu().numpy())
            (progress or Silent()).advance(pictures.shape[1])
        out: dict[str, float | None] = {}
        if self.lpips is not None:
            out["lpips"] = round(float(np.mean(distances)), 4)
        if self.inception is not None:
            shown_all, true_all = map(np.concatenate, features)
            out["fid"] = round(frechet_distance(shown_all, true_all), 4) if len(true_all) > 1 else None
        return out


def find(device: torch.device) -> Perceptual:
    """What of both is on this machine."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    for name, library, url, build in (
        ("lpips", "lpips", ALEXNET, _lpips),
        ("fid", "torch_fidelity", INCEPTION, _inception),
    ):
        try:
            module = import_module(library)
        except ImportError:
            found[name] = None
            notes.append(f"{name.upper()} is left out: install it with pip install 'retarget[metrics]'.")
            continue
        path, problem = _weights(url)
        found[name] = None
        if not problem:
            try:
                with _only_numbers():
                    found[name] = build(module, path, device)
            except Exception as error:  # whatever the libraries raise for a file that is not what it says
                problem = f"{path} cannot be used ({type(error).__name__}); put {url} there again."
        notes += [f"{name.upper()} is left out: {problem}"] if problem else []
    return Perceptual(found["lpips"], found["fid"], device, tuple(notes))


def _weights(url: str) -> tuple[Path, str]:
    """Where torch keeps the file of this address, and what is wrong with it; its name ends in its sha256's beginning,
    which is compared before anything in it is read."""
    import torch

    from .weights import sha256

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        return path, f"put {url} into {path.parent}."
    if not sha256(path).startswith(path.stem.rpartition("-")[2]):
        return path, f"{path} is damaged (wrong sha256); put {url} there again."
    return path, ""


@contextmanager
def _only_numbers() -> Iterator[None]:
    """`torch.load` reads tensors and nothing that could run, whatever the libraries ask of it.

    These files are the libraries' own, and PyTorch's format of them is a pickle. Their restricted reader is the one way
    without; eight digits of a sha256 alone are no protection.
    """
    always, never = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (always, never)}
    os.environ[always] = "1"
    try:
        yield
    finally:
        del os.environ[always]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _lpips(library: Any, path: Path, device: torch.device) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library calls torchvision in an old way
        net = library.LPIPS(net="alex", pnet_rand=True, verbose=False)  # a random trunk: else it would download
    alexnet = torch.load(path, weights_only=True)
    # `slice3.6.weight` of the library is `features.6.weight` of AlexNet.
    trunk = {name: alexnet[f"features.{name.partition('.')[2]}"] for name in net.net.state_dict()}
    net.net.load_state_dict(trunk)
    return net.to(device).eval()


def _inception(library: Any, path: Path, device: torch.device) -> Any:
    module = import_module(f"{library.__name__}.feature_extractor_inceptionv3")
    net = module.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    net.to(device).eval()
    return lambda pictures: net(pictures)[0]


def _pairs(produced: Path, truth: Path, every: int) -> Iterator[npt.NDArray[np.uint8]]:
    """(2, N, H, W, 3) RGB: up to `BATCH` frames of both videos, in the true one's size."""
    from .metrics import _sized
    from .video import open_reader

    with open_reader(produced) as ps, open_reader(truth) as ts:
        pairs = islice(zip(ps, ts, strict=False), 0, None, every)
        while batch := [(_sized(p, t), t) for p, t in islice(pairs, BATCH)]:
            yield np.stack(batch, 1)


def frechet_distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Between the Gaussians of two (N, D) and (M, D) sets of features; N, M > 1.

    |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½). With Σ = XᵀX of the centred, scaled features, the last trace is the sum of
    the singular values of Xa Xbᵀ: exact, and for few frames much faster than the root of a D × D matrix.
    """
    xa, xb = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    root = np.linalg.svd(xa @ xb.T, compute_uv=False).sum()
    return max(0.0, float(((a.mean(0) - b.mean(0)) ** 2).sum() + (xa**2).sum() + (xb**2).sum() - 2 * root))
