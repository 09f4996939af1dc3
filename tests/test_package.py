"""The package as a whole: its public names, who may import whom, and the wheel in an empty environment."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import retarget

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "retarget"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


# Public names.


def test_public_names() -> None:
    assert retarget.__all__ == ["Avatar", "DriveOptions", "PersonalizeOptions", "__version__", "drive", "personalize"]
    for name in retarget.__all__:
        assert getattr(retarget, name) is not None
        assert name in dir(retarget)
    with pytest.raises(AttributeError, match="no attribute 'dance'"):
        retarget.dance  # noqa: B018
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("first", ["retarget.drive", "retarget.personalize", "retarget.cli", "retarget.avatar"])
def test_functions_are_functions_whatever_is_imported_first(first: str) -> None:
    code = (
        f"import {first}, retarget, sys, types\n"
        "from retarget.drive import DriveOptions\n"
        "for name in ('drive', 'personalize'):\n"
        "    assert isinstance(getattr(retarget, name), types.FunctionType), name\n"
        "    assert isinstance(sys.modules['retarget.' + name], types.ModuleType), name\n"
        "assert retarget.DriveOptions is DriveOptions"
    )
    assert python(code).stderr == ""


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import retarget, sys; print({'torch', 'mediapipe', 'cv2', 'numpy', 'typer', 'rich'} & set(sys.modules))"
    assert python(code).stdout == "set()\n"


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 0), (4, 0, 0)])
def test_other_pythons_get_a_sentence(version: tuple[int, int, int]) -> None:
    sentence = f"retarget needs Python 3.10, 3.11 or 3.12; this is {version[0]}.{version[1]} ("
    pretend = f"import sys; sys.version_info = {version!r}\n"
    done = python(pretend + "import retarget")
    assert done.returncode == 1
    assert f"ImportError: {sentence}" in done.stderr
    done = python(pretend + "sys.argv = ['-m']\nimport retarget")
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1


# Who may import whom.

RANK = {
    **dict.fromkeys(("errors", "skeleton", "types"), 0),
    **dict.fromkeys(("heatmaps", "parts", "folders", "console", "plots", "inpainting"), 1),
    "cores": 0,
    **dict.fromkeys(("models", "pose", "video", "motion", "background", "weights", "device", "avatar", "metrics"), 2),
    **dict.fromkeys(("faces", "labels"), 2),
    "checkpoint": 2,
    "perceptual_metrics": 2,
    **dict.fromkeys(("arguments", "report"), 3),
    # What stands between inputs and models, and the loop that fits.
    **dict.fromkeys(("references", "gathering", "training", "training.player", "training.fit", "training.ranks"), 3),
    # Pairs to learn from; what they are made of on a training machine.
    **dict.fromkeys(("lessons", "rendering", "training.prepare", "training.corpus", "portraits", "streets"), 4),
    **dict.fromkeys(("preview", "tuning", "training.tasks", "training.run", "training.parsing"), 5),
    "training.feeding": 5,
    "training.train": 6,
    **dict.fromkeys(("personalize", "drive", "benchmark", "evaluate", "doctor", "forecast"), 6),
    "cli": 7,
    "__main__": 8,
}
"""Nobody imports from above; a package's modules have its rank unless they have one of their own."""


def rank(name: str) -> int:
    while name not in RANK:
        parent, _, last = name.rpartition(".")
        assert parent, f"{last} has no rank"
        name = parent
    return RANK[name]


def modules() -> Iterator[tuple[str, ast.Module]]:
    """All modules of the package but its own `__init__`: their names inside of it, and their syntax trees."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").parts
        if name != ("__init__",):
            yield ".".join(name[:-1] if name[-1] == "__init__" else name), ast.parse(path.read_text(encoding="utf-8"))


NAMES = {name for name, _ in modules()}


def inner_imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Which modules of the package one of them imports at run time, wherever in its text."""
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    package = name.split(".") if (PACKAGE / name.replace(".", "/")).is_dir() else name.split(".")[:-1]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node in typing_only:
            continue
        parts = node.module.split(".") if node.module else []
        if node.level:
            parts = ["retarget", *package[: len(package) - node.level + 1], *parts]
        if parts[:1] == ["retarget"]:
            found = ".".join(parts[1:])
            # `from .. import plots` names modules, `from .plots import curves` what is in one.
            below = [f"{found}.{alias.name}".lstrip(".") for alias in node.names]
            inner = [module for module in below if module in NAMES]
            yield from inner
            if found and len(inner) < len(below):
                yield found


def test_every_module_has_a_rank() -> None:
    assert sorted(n for n in NAMES if n.split(".")[0] not in {key.split(".")[0] for key in RANK}) == []
    assert sorted(key for key in RANK if key not in NAMES) == []


def test_imports_are_found() -> None:
    found = {name: set(inner_imports(name, tree)) for name, tree in modules()}
    assert {"lessons", "training.corpus", "training.prepare", "models", "models.base"} <= found["training.tasks"]
    assert {"plots", "weights", "metrics", "lessons"} <= found["training.run"]
    assert "training.prepare" not in found["training.corpus"]  # for the types only
    assert {"pose.cache", "pose.base", "video"} <= found["pose"]
    assert "drive" in found["cli"]


def test_imports_go_downwards() -> None:
    wrong = []
    for name, tree in modules():
        for other in inner_imports(name, tree):
            if rank(other) > rank(name):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_no_module_needs_itself() -> None:
    """Between modules of one rank, too, imports go one way."""
    needs = {name: set(inner_imports(name, tree)) - {name} for name, tree in modules()}
    left = dict(needs)
    while ends := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in ends}
    assert {name: sorted(others & left.keys()) for name, others in left.items()} == {}


def test_models_need_torch_and_numpy_only() -> None:
    allowed = {"models", "cores", "heatmaps", "parts", "errors", "skeleton", "types"}
    for name, tree in modules():
        if name.split(".")[0] == "models":
            assert {other.split(".")[0] for other in inner_imports(name, tree)} <= allowed, name
            assert outer_imports(tree) <= {"torch", "numpy"} | set(sys.stdlib_module_names), name


def outer_imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found - {"retarget"}


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("subprocess", {"video.process"}),  # the only module that starts ffmpeg
        ("huggingface_hub", {"weights"}),
        ("mediapipe", {"pose.mediapipe", "metrics", "doctor"}),
        ("ultralytics", {"pose.ultralytics"}),
        ("typer", {"cli"}),
        ("rich", {"console"}),
        ("imageio_ffmpeg", {"video.process", "doctor"}),
        ("platformdirs", {"folders"}),
        ("safetensors", {"avatar", "checkpoint", "weights", "training.run", "training.tasks"}),
        ("multiprocessing", {"training.feeding", "training.prepare", "training.tasks"}),
        ("matplotlib", set()),  # training machines have none
        ("pickle", set()),
    ],
)
def test_who_uses_a_library(library: str, users: set[str]) -> None:
    assert {name for name, tree in modules() if library in outer_imports(tree)} <= users


def test_one_module_talks_to_other_processes_of_a_training() -> None:
    users = {name for name, tree in modules() if "torch.distributed" in {
        m for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)
        for m in ([a.name for a in n.names] if isinstance(n, ast.Import) else [n.module])
    }}  # fmt: skip
    assert users == {"training.ranks"}


TRAINING = ("corpus", "fit", "player", "prepare", "ranks", "run", "tasks", "train")
ABSENT = ("mediapipe", "imageio_ffmpeg", "typer", "rich", "huggingface_hub", "platformdirs", "ultralytics", "skimage",
          "scipy", "matplotlib")  # fmt: skip


@pytest.mark.parametrize("name", ["lessons", "models.dance", "models.losses", *(f"training.{m}" for m in TRAINING)])
def test_a_training_machine_needs_few_libraries(name: str) -> None:
    """Only torch, NumPy, OpenCV and safetensors are there. That it trains, too, is tested in `training/test_train`."""
    code = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); import retarget.{name}"
    assert python(code).stderr == ""


def test_one_module_prints() -> None:
    for name, tree in modules():
        calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert "print" not in calls, name


def test_declared_dependencies_are_what_is_imported() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = {"cv2": "opencv-python", "huggingface_hub": "huggingface-hub", "imageio_ffmpeg": "imageio-ffmpeg"}
    used = set().union(*(outer_imports(tree) for _, tree in modules())) - set(sys.stdlib_module_names) - {"__future__"}
    for library in used:
        assert f'"{names.get(library, library)}' in text, library


def test_both_opencvs_are_one_version() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = {line.split("==")[1].strip('", ') for line in text.splitlines() if line.strip().startswith('"opencv-')}
    assert len(pins) == 1


# Setting up.


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (folder / "pyproject.toml").touch()
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_make_says_when_there_is_no_python(tmp_path: Path) -> None:
    done = make(tmp_path, "setup", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "retarget needs Python 3.10, 3.11 or 3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_shows_its_targets(tmp_path: Path) -> None:
    out = make(tmp_path).stdout
    for target in ("demo", "test", "check", "bench"):
        assert f"make {target} " in out


def test_ci_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make check" in script.read_text()


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    """Build the wheel, install it into a new environment and run it far from the checkout. Only our own package comes
    from the wheel: the heavy dependencies are lent by this environment instead of being downloaded once more."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str | Path) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    [wheel] = tmp_path.glob("retarget-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    modules_here = {"retarget/" + p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")}
    data = {"retarget/py.typed", "retarget/_assets/person.jpg", "retarget/_weights/manifest.json"}
    shipped = {f"retarget/_weights/{p.name}" for p in (ROOT / "weights").glob("*.safetensors")}
    assert modules_here | data | shipped <= names
    assert {n.split("/")[0] for n in names} == {"retarget", f"retarget-{retarget.__version__}.dist-info"}
    assert "Requires-Python: <3.13,>=3.10" in metadata
    assert "License-Expression: Apache-2.0" in metadata

    fresh = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", "--without-pip", fresh)
    inside = fresh / ("Scripts" if os.name == "nt" else "bin")
    run(*pip, "--python", inside / "python", "install", "--no-deps", "--no-index", wheel)
    place = Path(run(inside / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path in a .pth file is searched, but the .pth files in it are not read: no editable install sneaks in.
    (place / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert Path(run(inside / "python", "-c", "import retarget; print(retarget.__file__)").strip()).is_relative_to(fresh)
    assert run(inside / "retarget", "--version") == f"retarget {retarget.__version__}\n"
    assert json.loads(run(inside / "retarget", "weights", "list", "--json").splitlines()[0])["name"]
    report = json.loads(run(inside / "retarget", "doctor", "--json"))
    assert report["ok"]
    assert {check["name"] for check in report["checks"]} >= {"pose", "ffmpeg", "weights", "speed"}
