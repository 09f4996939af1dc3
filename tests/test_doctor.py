"""The doctor: does the real things once, and says of each failure how to mend it."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget import device, doctor, weights
from retarget.doctor import Check, examine
from retarget.errors import VideoError, WeightsError
from retarget.models import MODELS

NAMES = [
    "python", "packages", "device", "kernel", "precision", "memory", "ffmpeg", "pose", "weights", "folders", "disk",
    "speed", *MODELS,
]  # fmt: skip


def test_a_healthy_machine(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine("cpu")}
    assert list(checks) == NAMES
    failed = [check for check in checks.values() if check.status == "fail"]
    assert failed == []
    for check in checks.values():
        assert check.text
        assert bool(check.remedy) == (check.status != "ok")
    assert checks["packages"].figures["torch"] == torch.__version__
    assert checks["device"].figures == {"device": "cpu", "precision": "fp32"}
    assert checks["kernel"].figures["relative_error"] < 1e-4
    assert checks["kernel"].figures["seconds"] > 0
    assert all(checks["ffmpeg"].figures["encoders"].values())
    assert checks["pose"].figures["found"]
    assert 0.05 < checks["pose"].figures["person_share"] < 0.25  # what the person covers of the picture
    assert 0 < checks["speed"].figures["seconds_per_frame"] < 60
    for name in MODELS:
        assert checks[name].figures["learned"] == (f"{name} bundled" in checks["weights"].text)
        assert checks[name].figures["seconds_per_frame"] > 0
    assert checks["folders"].figures["data"] == str(tmp_path / "home")
    left = [p for p in (tmp_path / "home").rglob("*") if p.is_file() and "cache" not in p.parts]
    assert left == []


def test_the_picture_is_small() -> None:
    assert doctor.PICTURE.stat().st_size < 40_000


def test_a_missing_device_fails_and_what_depends_on_it_is_not_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    skip(monkeypatch, "_python", "_packages", "_ffmpeg", "_pose", "_weights", "_folders", "_disk")
    checks = {check.name: check for check in examine("cuda")}
    assert checks["device"].status == "fail"
    assert "CUDA was asked for" in checks["device"].text
    assert "--device cpu" in checks["device"].remedy
    for name in ("kernel", "precision", "memory", "speed", *MODELS):
        assert checks[name].status == "fail"
        assert "not examined" in checks[name].text


def skip(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(doctor, name, lambda n=name: Check(n, "ok", "left out"))


def test_an_unused_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(device.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    check = doctor._device("auto", "auto", [])
    assert check.status == "warn"
    assert "This machine has an NVIDIA GPU" in check.text
    assert check.remedy.startswith("Install its CUDA build")


def test_a_device_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, *_, **__: x if x.dtype == torch.double else x * 0)
    check = doctor._kernel(device.choose("cpu"))
    assert check.status == "fail"
    assert "is wrong by" in check.text


def test_mixed_precision_is_tried() -> None:
    check = doctor._precision(device.choose("cpu", "bf16"))
    assert (check.status, check.text) == ("ok", "bf16 autocast")


def test_an_encoder_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from retarget import video

    real: Callable[..., Any] = video.open_writer

    def without(kind: str) -> Callable[..., Any]:
        def open_writer(out: Path, *args: Any, **kwargs: Any) -> Any:
            if out.suffix == kind:
                raise VideoError("Unknown encoder.", "")
            return real(out, *args, **kwargs)

        return open_writer

    monkeypatch.setattr(video, "open_writer", without(".webm"))
    check = doctor._ffmpeg()
    assert check.status == "warn"  # transparency alone
    assert "VP9 with alpha (Unknown encoder.)" in check.text
    monkeypatch.setattr(video, "open_writer", without(".mp4"))
    assert doctor._ffmpeg().status == "fail"


def test_pose_models_that_find_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from retarget import video

    monkeypatch.setattr(video, "read_image", lambda _: np.full((640, 480, 3), 127, np.uint8))
    check = doctor._pose()
    assert check.status == "fail"
    assert "do not find the person" in check.text
    assert "mediapipe" in check.remedy


def entry(kind: Any = "model") -> weights.Entry:
    return weights.Entry("dance", kind, "a/b", "0" * 40, "d.safetensors", "0" * 64, 1, "CC0-1.0", "synthetic", {})


@pytest.mark.parametrize(
    ("state", "status"), [("bundled", "ok"), ("cached", "ok"), ("missing", "warn"), ("wrong", "fail")]
)
def test_weights(monkeypatch: pytest.MonkeyPatch, state: Any, status: str) -> None:
    monkeypatch.setattr(weights, "verify", lambda: [(entry(), state, Path("d.safetensors"))])
    check = doctor._weights()
    assert check.status == status
    assert f"dance {state}" in check.text
    assert ("weights pull" in check.remedy) == (status != "ok")


def test_no_shipped_weights_are_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "verify", lambda: [(entry("perceptual"), "missing", None)])
    check = doctor._weights()
    assert check.status == "ok"
    assert "dance starts from the moved pixels" in check.text


def test_a_damaged_list_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged() -> None:
        raise WeightsError("The list is damaged.", "Install retarget again.")

    monkeypatch.setattr(weights, "verify", damaged)
    check = doctor._guarded("weights", doctor._weights)
    assert check == Check("weights", "fail", "The list is damaged.", "Install retarget again.")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RETARGET_HOME", str(tmp_path / "file" / "home"))
    check = doctor._guarded("folders", doctor._folders)
    assert check.status == "fail"
    assert "RETARGET_HOME" in check.remedy


@pytest.mark.parametrize(("free", "status"), [(10**10, "ok"), (10**9, "warn"), (10**8, "fail")])
def test_disk_space(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor._disk().status == status


def test_two_versions_of_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"opencv-python": "4.12.0.88", "opencv-contrib-python": "4.11.0.86"}

    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = doctor._packages()
    assert check.status == "warn"
    assert "overwrite each other" in check.text


def test_a_package_that_is_missing() -> None:
    def check() -> Check:
        importlib.import_module("retarget_has_no_such_module")
        return Check("x", "ok", "")

    assert doctor._guarded("x", check).status == "fail"
    assert "pip install" in doctor._guarded("x", check).remedy


def test_a_surprise_is_a_failed_line_too() -> None:
    def check() -> Check:
        raise ZeroDivisionError("division by zero")

    assert doctor._guarded("x", check).status == "fail"
