"""Two true processes train together: what comes out is what one process would have made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retarget import weights
from retarget.training.ranks import Ranks, together
from retarget.training.train import TrainOptions, train

SMALL: dict[str, Any] = {"density": 24, "width": 8, "depth": 2}
PRETRAIN = TrainOptions(
    "pretrain", config=SMALL, steps=6, batch=2, rate=2e-3, frames=(3,), inner=2, draws=1, side=64, device="cpu",
    precision="fp32", critic=True,
)  # fmt: skip
META = replace(PRETRAIN, stage="meta", steps=3, tasks=2, critic=False)
ROOT = Path(__file__).parents[2]

WORKER = """
import os, sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path[:0] = [{tests!r}]
from test_ranks import META, PRETRAIN
from retarget.errors import RetargetError
from retarget.training import ranks
from retarget.training import train as module
from retarget.training.run import Run

torch.set_num_threads(1)
corpus, out = Path({corpus!r}), Path({out!r})
rank = int(os.environ["RANK"])


def kept(self, run_it):
    # What this process ended with.
    done = run_it(self)
    (out / "ends").mkdir(exist_ok=True)
    state = {{k: t.detach().contiguous() for k, t in self.result().items()}}
    save_file(state, out / "ends" / (self.run.folder.name + "-" + str(rank) + ".safetensors"))
    return done


for work in (module._Pretraining, module._Reptile):
    work.run_it = lambda self, run_it=work.run_it: kept(self, run_it)

with ranks.together(torch.device("cpu")) as all_of_us:  # once for all runs
    ranks.together = lambda device: nullcontext(all_of_us)
{what}
"""


def launch(corpus: Path, out: Path, what: str) -> subprocess.CompletedProcess[str]:
    """Run `what` in two processes."""
    script = out / "worker.py"
    folder = str(Path(__file__).parent)
    script.write_text(WORKER.format(tests=folder, corpus=str(corpus), out=str(out), what=what))
    return torchrun(str(script))


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, errors = process.communicate(timeout=240)
        except BaseException:
            process.terminate()  # it ends the two, which may be waiting for one another
            process.communicate(timeout=60)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


@pytest.fixture(scope="module")
def ready(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with all tasks drawn, and what one process makes of it: `alone`, in a folder beside."""
    from .conftest import Inline

    out = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retarget.training.tasks.ProcessPoolExecutor", Inline)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in the order of the others
        train(corpus_folder, out / "alone", META)
        train(corpus_folder, out / "pretrain alone", replace(PRETRAIN, steps=1))
        torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def ran(corpus_folder: Path, ready: Path) -> Path:
    """What two processes make of it."""
    what = """
    module.train(corpus, out / "meta", META)
    module.train(corpus, out / "pretrain", PRETRAIN)

    # One process finds that the time is up: all end after the same step, and go on from there.
    over, asked = Run.over, []
    Run.over = property(lambda self: rank == 1 and (asked.append(0) or len(asked) > 3))
    done = module.train(corpus, out / "parts", PRETRAIN)
    assert (done.steps, done.finished) == (3, False), done
    Run.over = over
    assert module.train(corpus, out / "parts", PRETRAIN).finished

    # Forgetting what there was.
    module.train(corpus, out / "again", replace(META, rate=1e-3))
    module.train(corpus, out / "again", META, restart=True)

    # What is not finite for one process is discarded by all.
    pairs = module._Pairs.__call__
    def poisoned(self, step):
        batch = pairs(self, step)
        if step == 2 and rank == 1:
            batch = batch._replace(truth=batch.truth._replace(rgb=batch.truth.rgb * float("nan")))
        return batch
    module._Pairs.__call__ = poisoned
    module.train(corpus, out / "poisoned", PRETRAIN)
    module._Pairs.__call__ = pairs

    # What cannot be.
    try:
        module.train(corpus, out / "odd", replace(META, tasks=3))
    except RetargetError as error:
        (out / f"refused-{rank}").write_text(str(error))
"""
    done = launch(corpus_folder, ready, what)
    assert done.returncode == 0, done.stderr[-4000:]
    return ready


def ends(folder: Path, run: str) -> list[dict[str, torch.Tensor]]:
    """What both processes ended with."""
    return [load_file(folder / "ends" / f"{run}-{rank}.safetensors") for rank in (0, 1)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_two_processes_meta_learn_what_one_does(ran):
    one, two = (load_file(ran / name / "checkpoint.safetensors") for name in ("alone", "meta"))
    assert one.keys() == two.keys()
    for key, t in one.items():
        torch.testing.assert_close(two[key], t, atol=1e-6, rtol=1e-5)
    mine, theirs = ends(ran, "meta")
    assert same(mine, theirs)


def test_two_processes_pretrain_one_model(ran):
    mine, theirs = ends(ran, "pretrain")
    assert same(mine, theirs)
    alone = weights.load_file(ran / "pretrain alone" / "weights.safetensors")[0]
    assert alone.keys() == mine.keys()
    file = weights.load_file(ran / "pretrain" / "weights.safetensors")[0]
    assert all(torch.equal(t.half(), file[k]) for k, t in mine.items())
    assert not all(torch.equal(file[k], alone[k]) for k in file)


def test_one_process_writes(ran):
    from .conftest import visible

    for name, options in (("meta", META), ("pretrain", PRETRAIN), ("parts", PRETRAIN), ("again", META)):
        assert visible(ran / name) == [
            "checkpoint.safetensors", "curves.png", "log.jsonl", "options.json", "samples.png", "weights.safetensors",
        ]  # fmt: skip
        lines = [json.loads(line) for line in (ran / name / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, options.steps + 1))
        assert json.loads((ran / name / "options.json").read_text())["world"] == 2


def test_they_end_together_and_go_on_together(ran):
    for parts, whole in zip(ends(ran, "parts"), ends(ran, "pretrain"), strict=True):
        assert same(parts, whole)


def test_they_forget_together(ran):
    for again, whole in zip(ends(ran, "again"), ends(ran, "meta"), strict=True):
        assert same(again, whole)


def test_they_discard_together(ran):
    mine, theirs = ends(ran, "poisoned")
    assert same(mine, theirs)
    assert all(t.isfinite().all() for t in mine.values())
    assert not same(mine, ends(ran, "pretrain")[0])


def test_tasks_that_do_not_divide_are_refused(ran):
    for rank in (0, 1):
        assert "3 tasks per meta-iteration do not divide among 2 processes" in (ran / f"refused-{rank}").read_text()


def test_the_command_line(corpus_folder, ready, tmp_path):
    words = ["--steps", "2", "--tasks", "2", "-k", "3", "-t", "1", "--draws", "1", "--side", "64", "--device", "cpu"]
    config = [w for k, v in SMALL.items() for w in ("--config", f"{k}={v}")]
    done = torchrun(
        "-m", "retarget", "train", "meta", str(corpus_folder), "--out", str(tmp_path / "run"), *words, *config, "--json"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "run" / "weights.safetensors").exists()
    results = [json.loads(line) for line in done.stdout.splitlines() if '"weights"' in line]
    assert len(results) == 1  # one of them speaks
    assert results[0]["finished"]


# ------------------------------------------------------------------------------------------------ one by itself


def test_one_process_is_its_own_mean(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with together(torch.device("cpu")) as ranks:
        assert ranks == Ranks(0, 1)
        t = torch.tensor([1.0, 3.0])
        ranks.mean([t])
        assert t.tolist() == [1, 3]
        assert ranks.agree(True, torch.device("cpu"))
        assert not ranks.agree(False, torch.device("cpu"))
        ranks.wait()
    assert not torch.distributed.is_initialized()
