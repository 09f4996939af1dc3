"""How long a frame takes here, of any model: what `doctor` tells."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .types import PoseTrack, Silent


@dataclass(frozen=True)
class Timing:
    """What was measured of a model of the preset `small`.

    seconds     per frame, the median.
    parameters  how many it has.
    learned     whether its shipped weights were at work.
    """

    seconds: float
    parameters: int
    learned: bool


def benchmark_frame(model: str = "dance", size: tuple[int, int] = (384, 512), device: str = "auto") -> Timing:
    """Draw a made-up person a few times, with the model's shipped weights if they are at hand.

    Args:
        model: one of `models.MODELS`.
        size: (width, height) of the frame.
        device: see `device.choose`.

    Raises:
        RetargetError: no such model or device; weights that are damaged; a frame that is not finite.
    """
    import numpy as np
    import torch

    from . import device as devices
    from . import weights
    from .models.base import References
    from .references import poses
    from .rendering import pictures
    from .tuning import start

    compute = devices.choose(device)
    entry = weights.ENTRY["meta"].format(model)
    here = weights.known(entry) and weights.at_hand(entry) is not None
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net, digest, _ = start(model, "meta" if here else "random", Silent())
        if digest is None:
            for parameter in net.parameters():  # nets that answer zero need not be asked
                if not parameter.any():
                    torch.nn.init.normal_(parameter, 0, 0.01)
    net.to(compute.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    track = _walk(size)
    count, (width, height) = len(track), size
    matte = torch.zeros(1, count, 1, height, width)
    matte[..., height // 10 : -height // 10, width // 4 : -width // 4] = 1
    generator = torch.Generator().manual_seed(0)
    shown = torch.rand(1, count, 3, height, width, generator=generator)
    with torch.inference_mode():
        plate = torch.zeros(1, 3, height, width)
        person = net.encode(References(shown, matte, poses(track), plate).to(compute.device))
    times = []
    last = time.perf_counter()
    for _ in pictures(net, person, track.select([i % count for i in range(6)]), size, compute):
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return Timing(float(np.median(times[2:])), sum(p.numel() for p in net.parameters()), digest is not None)


def _walk(size: tuple[int, int]) -> PoseTrack:
    """Two poses of somebody who stands in the middle of a picture of `size` (width, height)."""
    import numpy as np

    rng = np.random.default_rng(0)
    width, height = size
    stand = np.array(
        [(0, -70)] * 11 + [(-18, -50), (18, -50), (-24, -22), (24, -22), (-26, 3), (26, 3)]
        + [(-27, 10), (27, 10), (-27, 10), (27, 10), (-25, 8), (25, 8)]
        + [(-11, 0), (11, 0), (-12, 42), (12, 42), (-12, 80), (12, 80), (-12, 84), (12, 84), (-18, 86), (18, 86)],
        float,
    ) * (height / 190) + (width / 2, height / 2)  # fmt: skip
    stand[:11] += rng.normal(0, 0.02 * height, (11, 2))
    body = np.concatenate([stand + rng.normal(0, 0.01 * height, (2, 33, 2)), np.zeros((2, 33, 1)),
                           np.ones((2, 33, 1))], 2).astype(np.float32)  # fmt: skip
    none = np.full((2, 468, 3), np.nan, np.float32)
    return PoseTrack(body, body[..., :3] / height, none, none[:, :42].reshape(2, 2, 21, 3), size)
