"""Avatars: written whole or not at all, read back exactly, taken in from strangers without trust."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget import avatar as module
from retarget import folders
from retarget.avatar import Avatar, AvatarMeta, import_avatar, latest_avatar, list_avatars, save_avatar
from retarget.errors import AvatarError, StorageError, UsageError

META = AvatarMeta(
    name="",
    model="dance",
    size=(480, 640),
    frames=5,
    fps=Fraction(24000, 1001),
    options={"steps": 20, "pick": (1, 2)},
    quality={"psnr": 27.5},
    extra={"floor": 601.5},
)
TENSORS = {"pictures": np.arange(2 * 4 * 3 * 3, dtype=np.uint8).reshape(2, 4, 3, 3), "seen": np.ones((2, 2), bool)}
PREVIEW = np.zeros((8, 6, 3), np.uint8)


def save(name: str = "me", **changes: Any) -> Avatar:
    return save_avatar(name, replace(META, **changes), TENSORS, {"w": torch.ones(2, 3)}, PREVIEW)


def contents() -> set[str]:
    return {p.name for p in folders.avatars_dir().iterdir()}


def test_what_is_saved_is_read_back() -> None:
    written = save()
    avatar = Avatar.load("me")
    assert avatar == written
    assert avatar.meta == replace(
        META, name="me", id=avatar.id, created=avatar.meta.created, options={"steps": 20, "pick": [1, 2]}
    )
    assert avatar.size == (480, 640)
    assert avatar.fps == Fraction(24000, 1001)
    for name, value in TENSORS.items():
        got = avatar.tensors()[name]
        assert got.dtype == value.dtype
        assert np.array_equal(got, value)
    assert np.array_equal(avatar.state()["w"], np.ones((2, 3), np.float32))
    assert avatar.preview.read_bytes().startswith(b"\x89PNG")
    assert avatar.bytes == sum(f.stat().st_size for f in avatar.path.iterdir())
    assert Avatar.load(avatar.path) == avatar


def test_the_preview_keeps_its_colours() -> None:
    from retarget.video import read_image

    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    avatar = save_avatar("red", META, TENSORS, None, red)
    assert read_image(avatar.preview)[0, 0].tolist() == [255, 0, 0]
    assert avatar.state() == {}


def test_bfloat16_and_strided_tensors_can_be_saved() -> None:
    state = {"half": torch.full((3,), 1.5, dtype=torch.bfloat16), "strided": torch.arange(6.0).reshape(2, 3).T}
    avatar = save_avatar("x", META, {"turned": np.arange(6).reshape(2, 3).T}, state, PREVIEW)
    assert avatar.state()["half"].tolist() == [1.5] * 3
    assert avatar.state()["strided"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert avatar.tensors()["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_figures_that_json_does_not_know() -> None:
    quality = {"psnr": float("inf"), "ssim": np.float32(0.5)}
    avatar = save(quality=quality, extra={"path": Path("a/b"), "box": np.array([1, 2])})
    assert avatar.meta.quality == {"psnr": None, "ssim": 0.5}
    assert avatar.meta.extra == {"path": "a/b", "box": [1, 2]}


def test_the_last_personalised_comes_first() -> None:
    save("b", created="2026-01-02T00:00:00+00:00")
    save("c", created="2026-01-03T01:00:00+02:00")  # 23:00 UTC on the second
    save("a", created="2026-01-01T00:00:00+00:00")
    assert [a.name for a in list_avatars()] == ["c", "b", "a"]
    assert latest_avatar().name == "c"


def test_without_avatars() -> None:
    assert list_avatars() == []
    with pytest.raises(AvatarError, match="There is no avatar yet") as error:
        latest_avatar()
    assert "retarget personalize" in error.value.remedy


def test_an_unknown_name_lists_the_known() -> None:
    save("anna")
    save("Bélà")
    with pytest.raises(AvatarError, match="no avatar called carl") as error:
        Avatar.load("carl")
    assert error.value.remedy == "There are: Bélà, anna."


def test_a_name_goes_before_a_folder_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("demo")
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Avatar.load("demo").path == folders.avatars_dir() / "demo"
    (tmp_path / "other").mkdir()
    with pytest.raises(AvatarError, match=r"is no avatar: it has no avatar\.json"):
        Avatar.load("other")


def test_a_renamed_folder_renames_the_avatar() -> None:
    save("old").path.rename(folders.avatars_dir() / "new")
    assert Avatar.load("new").name == "new"
    assert [a.name for a in list_avatars()] == ["new"]


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\\b", "..", ".x", "-x", "a:b", "x" * 65, "a\nb", "con?", "x."])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="An avatar's name"):
        save(name)
    assert not folders.avatars_dir().exists() or contents() == set()


@pytest.mark.parametrize("name", ["me", "Zoë 2", "名前", "a.b-c_d", "x" * 64])
def test_names_that_can(name: str) -> None:
    assert Avatar.load(save(name).name).name == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/me.mp4", "me"),
        ("my video.x.mov", "my video.x"),
        ("..mp4", "avatar"),
        ("-a:b?.mp4", "a_b_"),
        ("é" * 90, "é" * 64),
    ],
)
def test_the_name_of_an_input(path: str, name: str) -> None:
    assert module.name_for(path) == name
    assert module.check_name(name) == name


def test_the_name_of_a_folder_keeps_its_dots(tmp_path: Path) -> None:
    (tmp_path / "photos.v2").mkdir()
    assert module.name_for(tmp_path / "photos.v2") == "photos.v2"


def test_replacing_takes_the_place_of_the_old() -> None:
    save("me")
    new = save_avatar("me", replace(META, id="0" * 32), {"other": np.zeros(3)}, None, PREVIEW)
    assert Avatar.load("me") == new
    assert set(new.tensors()) == {"other"}
    assert contents() == {"me"}


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.reliability("2. Bad input", "a failure while an avatar is replaced", "the old one stays")
def test_a_failure_leaves_the_old_and_nothing_else(monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    if existing:
        old = save("me")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_png", full)
    with pytest.raises(StorageError, match="No space left on device"):
        save("me")
    assert contents() == ({"me"} if existing else set())
    if existing:
        assert Avatar.load("me") == old


def test_an_interrupted_replacement_is_taken_back() -> None:
    avatar = save("me")
    avatar.path.rename(avatar.path.with_name(".me.old"))  # the process died between the two renames
    with module.alone():  # somebody else writes: it stays as it is, and can be read
        assert Avatar.load("me") == avatar
        assert np.array_equal(avatar.tensors()["pictures"], TENSORS["pictures"])
        assert [a.name for a in list_avatars()] == ["me"]
        avatar.path.rename(avatar.path.with_name(".me.old"))
        (avatar.path.with_name(".half.abc.tmp")).mkdir()
    assert Avatar.load("me") == avatar
    assert contents() == {"me"}


def test_a_folder_that_cannot_be_made() -> None:
    folders.data_dir().write_text("a file is in the way")
    with pytest.raises(StorageError):
        save()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no avatar.json": (lambda p: (p / "avatar.json").unlink(), "no avatar called|no avatar"),
    "no json": (lambda p: (p / "avatar.json").write_text("{"), "cannot be read"),
    "binary": (lambda p: (p / "avatar.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "a list": (lambda p: (p / "avatar.json").write_text("[]"), "does not describe an avatar"),
    "no tensors": (lambda p: (p / "references.safetensors").unlink(), "no references.safetensors"),
    "cut tensors": (
        lambda p: (p / "references.safetensors").write_bytes((p / "references.safetensors").read_bytes()[:-1]),
        r"references\.safetensors is damaged",
    ),
    "cut state": (lambda p: (p / "model.safetensors").write_bytes(b"12"), r"model\.safetensors is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_and_does_not_hide_others(damage: str) -> None:
    save("whole")
    path = save("broken").path
    DAMAGES[damage][0](path)
    with pytest.raises(AvatarError, match=DAMAGES[damage][1]) as error:
        Avatar.load("broken")
    assert str(path) in error.value.message
    assert error.value.remedy
    assert [a.name for a in list_avatars()] == ["whole"]
    module.remove("broken")
    assert contents() == {"whole"}


@pytest.mark.parametrize(
    "change",
    [{"size": [0, 3]}, {"size": "big"}, {"fps": "1/0"}, {"frames": -1}, {"created": "now"}, {"name": "../x"},
     {"name": 3}, {"config": []}, {"frames": "5"}],
)  # fmt: skip
def test_a_description_with_a_wrong_field(change: dict[str, Any]) -> None:
    path = save().path / "avatar.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AvatarError, match="is damaged"):
        Avatar.load("me")


def test_a_newer_avatar() -> None:
    path = save().path / "avatar.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2, "version": "9.9"}))
    with pytest.raises(AvatarError, match=r"newer retarget \(9\.9\)") as error:
        Avatar.load("me")
    assert "Update retarget" in error.value.remedy


def test_fields_of_the_future_are_ignored() -> None:
    path = save().path / "avatar.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mood": "good"}))
    assert Avatar.load("me").name == "me"


def test_remove() -> None:
    save("a")
    save("b")
    module.remove("a")
    assert contents() == {"b"}
    with pytest.raises(AvatarError, match="no avatar called a"):
        module.remove("a")


# Export and import.


def pack(path: Path, **files: bytes) -> Path:
    """An archive of an exported avatar with some files changed or added (`None` removes one)."""
    avatar = save("packed")
    members = {f.name: f.read_bytes() for f in avatar.path.iterdir()} | files
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    module.remove("packed")
    return path


def test_an_export_comes_back_as_it_was(tmp_path: Path) -> None:
    avatar = save("me")
    file = module.export(avatar, tmp_path / "me.zip")
    module.remove("me")
    back = import_avatar(file)
    assert back == avatar
    assert np.array_equal(back.tensors()["pictures"], TENSORS["pictures"])
    other = import_avatar(file, "other")
    assert (other.name, other.id) == ("other", avatar.id)
    assert Avatar.load("other").meta.name == "other"
    assert [p.name for p in tmp_path.glob("*.zip*")] == ["me.zip"]


def test_an_import_takes_no_name_that_is_taken(tmp_path: Path) -> None:
    avatar = save("me")
    file = module.export(avatar, tmp_path / "me.zip")
    with pytest.raises(AvatarError, match="already an avatar called me") as error:
        import_avatar(file)
    assert "--name" in error.value.remedy
    assert import_avatar(file, overwrite=True) == avatar


def test_export_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        module.export(save(), tmp_path / "no" / "me.zip")


HOSTILE = ("../evil", "/tmp/evil", "a/avatar.json", "evil.pkl", "C:\\evil", "avatar.json/..")


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_with_a_strange_file_is_refused(tmp_path: Path, name: str) -> None:
    file = pack(tmp_path / "x.zip", **{name: b"evil"})
    with pytest.raises(AvatarError, match="what no avatar has"):
        import_avatar(file)
    assert contents() == set()
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["x.zip"]


@pytest.mark.reliability("4. Hostile input", "`avatars import` of an archive with a link", "refused, writes nothing")
def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    file = pack(tmp_path / "x.zip")
    with zipfile.ZipFile(file, "a") as archive:
        link = zipfile.ZipInfo("model.safetensors.link")
        link.filename = "preview.png"
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(link, "/etc/passwd")
    with pytest.raises(AvatarError, match="what no avatar has"):
        import_avatar(file)
    assert contents() == set()


def test_an_archive_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.FILES, "references.safetensors", 10)
    with pytest.raises(AvatarError, match=r"references\.safetensors .* would be"):
        import_avatar(pack(tmp_path / "x.zip"))
    assert contents() == set()


@pytest.mark.reliability(
    "4. Hostile input", "`avatars import` of an archive that lies about sizes", "refused, writes nothing"
)
def test_an_archive_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    avatar = save("packed")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for f in avatar.path.iterdir():
            archive.writestr(f.name, f.read_bytes())
        archive.getinfo("references.safetensors").file_size = 3
    module.remove("packed")
    with pytest.raises(AvatarError):
        import_avatar(file)
    assert contents() == set()


@pytest.mark.parametrize("missing", ["avatar.json", "references.safetensors"])
def test_an_archive_without_a_needed_file(tmp_path: Path, missing: str) -> None:
    avatar = save("packed")
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for f in avatar.path.iterdir():
            if f.name != missing:
                archive.write(f, f.name)
    with pytest.raises(AvatarError, match=f"it has no {missing}"):
        import_avatar(file, "other")
    assert contents() == {"packed"}


@pytest.mark.parametrize("data", [b"", b"no zip at all", b"PK\x03\x04 but not really"])
def test_files_that_are_no_archive(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(AvatarError, match="is no exported avatar"):
        import_avatar(tmp_path / "x.zip")


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="There is no file"):
        import_avatar(tmp_path / "x.zip")


@pytest.mark.parametrize(
    "files",
    [{"references.safetensors": b"junk"}, {"avatar.json": b"junk"}, {"avatar.json": b"{}"}, {"model.safetensors": b""}],
)
def test_an_archive_with_damaged_contents(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(AvatarError):
        import_avatar(pack(tmp_path / "x.zip", **files))
    assert contents() == set()


def test_a_corrupted_archive(tmp_path: Path) -> None:
    file = pack(tmp_path / "x.zip")
    data = bytearray(file.read_bytes())
    at = data.index(b"\x89PNG") + 20
    data[at] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(AvatarError, match="damaged"):
        import_avatar(file)
    assert contents() == set()
