"""Where something stands, on disk and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from retarget import checkpoint
from retarget.errors import StorageError

STATE: dict[str, Any] = {
    "weights": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "rng": torch.get_rng_state(),
    "step": 7,
    "rate": 0.1 + 0.2,
    "best": None,
    "fp32": False,
    "worst": math.inf,
    "notes": ["“so”, and so"],
    "first": {"psnr": 1 / 3},
}


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    assert checkpoint.load(path) is None
    checkpoint.save(path, {"step": 1, "weights": torch.zeros(2)})
    checkpoint.save(path, STATE)
    back = checkpoint.load(path)
    assert back is not None
    assert back.keys() == STATE.keys()
    for key, value in STATE.items():
        assert torch.equal(back[key], value) if isinstance(value, torch.Tensor) else back[key] == value, key
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["state.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "empty", "another kind", "not told"])
@pytest.mark.reliability("1. Resume", "a damaged checkpoint", "noticed, never used")
def test_damage_is_noticed(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, STATE)
    if damage == "not told":
        from safetensors.torch import save_file

        save_file({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes({"cut": path.read_bytes()[:-9], "empty": b"", "another kind": b"{" * 99}[damage])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
        checkpoint.load(path)


def test_a_full_disk_is_told_and_the_one_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, STATE)

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"a little")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match=r"state\.safetensors cannot be written: .*No space left"):
        checkpoint.save(path, {"step": 8})
    assert (checkpoint.load(path) or {})["step"] == 7
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["state.safetensors"]
