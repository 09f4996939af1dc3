"""Where things are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from retarget import folders
from retarget.errors import StorageError


def test_retarget_home_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETARGET_HOME", str(tmp_path / "here"))
    assert folders.data_dir() == tmp_path / "here"
    assert folders.avatars_dir() == tmp_path / "here" / "avatars"
    assert folders.cache_dir() == tmp_path / "here" / "cache"
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("value", ["~/retarget-home", "relative/home"])
def test_retarget_home_may_be_relative(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETARGET_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert folders.data_dir().is_absolute()
    assert folders.data_dir().is_relative_to(tmp_path)


def test_without_it_the_users_folders_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETARGET_HOME", "")
    assert folders.data_dir().name == "retarget"
    assert "retarget" in folders.cache_dir().parts
    assert folders.data_dir() != folders.cache_dir()


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    assert folders.made(tmp_path / "a" / "b").is_dir()
    assert folders.made(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StorageError, match="cannot be created") as error:
            folders.made(path)
        assert "RETARGET_HOME" in error.value.remedy
