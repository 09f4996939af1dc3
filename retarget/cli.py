"""The command line: reads what was typed, checks it, calls one function, prints. No logic, and nothing heavy at import.

Everything a person can mistype is refused before any work, as a `UsageError` (`arguments`); defaults are read from the
options dataclasses of the functions that are called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from . import __version__, arguments
from .arguments import MAX_FRAMES, MAX_SEED, MAX_STEPS, SIZES
from .console import Console, number
from .console import size as readable
from .drive import DriveOptions
from .errors import UsageError
from .evaluate import EvaluateOptions
from .personalize import PersonalizeOptions
from .training.prepare import PrepareOptions
from .training.train import TrainOptions

if TYPE_CHECKING:
    from .avatar import Avatar

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

# Any: typer wants the literals of `Device` and the like, the dataclasses say str.
_P: Any = PersonalizeOptions()
_D: Any = DriveOptions()
_E: Any = EvaluateOptions()
_C: Any = PrepareOptions()
_T: Any = TrainOptions()

app = typer.Typer(
    name="retarget",
    help="Make an mp4 of yourself doing what somebody else does in another video.",
    epilog="First: retarget personalize me.mp4. Then: retarget drive --source dance.mp4 --out out.mp4",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout and sys.stdout.isatty() else None,  # plain help starts a good deal faster
    context_settings={"help_option_names": ["-h", "--help"]},
)
avatars = typer.Typer(no_args_is_help=True, help="The avatars on this machine.")
weights = typer.Typer(no_args_is_help=True, help="The learned weights.")
app.add_typer(avatars, name="avatars")
app.add_typer(weights, name="weights")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command. `args` are the words after `retarget`; returns the exit code."""
    words = list(sys.argv[1:] if args is None else args)
    console = Console(json=_asks_for_json(words))
    run = cast("Callable[..., object]", app)
    return console.run(lambda: run(args=words, prog_name="retarget", obj=console, standalone_mode=False))


def _asks_for_json(words: Sequence[str]) -> bool:
    """Whether errors in the words themselves are to be told as JSON (`evaluate --json FILE` means something else)."""
    end = words.index("evaluate") if "evaluate" in words else len(words)
    return "--json" in words[:end]


# Options that several commands share.


def _set_json(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.find_object(Console).json = True  # type: ignore[union-attr]
    return value


def _set_quiet(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.find_object(Console).quiet = True  # type: ignore[union-attr]
    return value


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"retarget {__version__}")
        raise typer.Exit


def _joined(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def _avatar_names() -> list[str]:
    from .avatar import avatar_names

    return avatar_names()


Json = Annotated[bool, typer.Option("--json", callback=_set_json, is_eager=True, help="One JSON object per line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_set_quiet, is_eager=True, help="Only errors.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Overwrite or delete without asking.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="How precisely to compute.")]
PresetOption = Annotated[str, typer.Option("--preset", help="The model's sizes: small, or the paper's: paper.")]
Anyway = Annotated[bool, typer.Option("--yes", "-y", help="Begin even if memory or disk are not expected to suffice.")]
PersonOption = Annotated[
    str, typer.Option("--person", metavar="largest|X,Y", help="Whom to follow: X,Y is a pixel of the first frame.")
]
ScenesOption = Annotated[
    list[Path],
    typer.Option(
        "--labels",
        metavar="FOLDER|VIDEO",
        help="Label maps of street scenes: for each of CLIPS in their order, or one folder with all by name.",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=_avatar_names)]


@app.callback()
def options(
    ctx: typer.Context,
    json: Json = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def personalize(
    ctx: typer.Context,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="One video, or photos, or a folder of them.")
    ],
    frames: Annotated[int, typer.Option("--frames", "-k", help="How many frames to learn from (K).")] = _P.frames,
    steps: Annotated[int, typer.Option("--steps", "-t", help="Fine-tuning steps (T); 0 skips it.")] = _P.steps,
    name: Annotated[str | None, typer.Option(help="Of the avatar; by default the file's.")] = _P.name,
    model: Annotated[str, typer.Option(help="The model.")] = _P.model,
    preset: PresetOption = _P.preset,
    init: Annotated[
        str, typer.Option(metavar="meta|pretrain|random|FILE", help="The weights that fine-tuning starts from.")
    ] = _P.init,
    size: Annotated[int, typer.Option(help="Short side of the avatar's picture, pixels; never enlarged.")] = _P.size,
    pick: Annotated[
        str | None, typer.Option(metavar="12,40,…", help="Numbers of the frames to learn from, chosen by you.")
    ] = None,
    person: PersonOption = _P.person,
    background: Annotated[
        Literal["video", "frames"], typer.Option(help="The empty scene from the whole video, or the K frames only.")
    ] = _P.background,
    crop: Annotated[
        Literal["auto", "head", "none"], typer.Option(help="Squares around the head, or whole pictures.")
    ] = _P.crop,
    labels: Annotated[
        Path | None, typer.Option(metavar="FOLDER|VIDEO", help="Label maps, one per picture, of a street scene.")
    ] = None,
    device: DeviceOption = _P.device,
    precision: PrecisionOption = _P.precision,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = _P.seed,
    restart: Annotated[bool, typer.Option("--restart", help="Do not continue an interrupted run.")] = _P.restart,
    yes: Anyway = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an avatar of the person in a video or in photos; or, with --labels, of a street scene."""
    from . import forecast
    from .avatar import check_name
    from .device import choose
    from .personalize import expand, personalize

    picked = arguments.pick(pick)
    arguments.within("--frames", frames, 1, MAX_FRAMES)
    arguments.within("--steps", steps, 0, MAX_STEPS)
    arguments.within("--size", size, *SIZES)
    arguments.within("--seed", seed, 0, MAX_SEED)
    arguments.person(person)
    arguments.model(model)
    if name is not None:
        name = check_name(name)
    for path in (*inputs, *([] if labels is None else [labels])):
        arguments.readable(path)
    console = _console(ctx, goes_on=True)
    chosen = PersonalizeOptions(
        frames=frames, steps=steps, name=name, model=model, preset=preset, init=init, size=size, pick=picked,
        person=person, background=background, crop=crop, labels=None if labels is None else str(labels),
        device=device, precision=precision, seed=seed, restart=restart,
    )  # fmt: skip
    with forecast.announced(
        lambda: forecast.personalize(expand(inputs), chosen, choose(device, precision)), console, yes=yes
    ) as progress:
        avatar = personalize(inputs, chosen, progress=progress)
    console.result(
        _describe(avatar),
        f"Avatar {avatar.name}: {avatar.path}",
        f"Look at what was made of it: {avatar.preview}",
        f"Quality on left-out references: {_quality(avatar)}",
    )


@app.command()
def drive(
    ctx: typer.Context,
    source: Annotated[Path, typer.Option(help="The video whose motion is taken; of a scene, label maps.")],
    out: Annotated[Path, typer.Option(help="The video to write.")],
    avatar: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", autocompletion=_avatar_names, help="By default the one personalised last."),
    ] = None,
    align: Annotated[
        Literal["auto", "none"], typer.Option(help="Fit the motion to the avatar's body, or leave it where it is.")
    ] = _D.align,
    smooth: Annotated[float, typer.Option(help="Of the motion: 0 (not at all) to 1.")] = _D.smooth,
    background: Annotated[
        str, typer.Option(metavar="plate|source|#rrggbb|IMAGE|VIDEO|transparent", help="What is behind the person.")
    ] = _D.background,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Take the source's sound along.")] = _D.audio,
    compare: Annotated[bool, typer.Option("--compare", help="Source and result side by side.")] = _D.compare,
    start: Annotated[float, typer.Option(metavar="S", help="Where to begin in the source, seconds.")] = _D.start,
    end: Annotated[float | None, typer.Option(metavar="S", help="Where to end, seconds.")] = _D.end,
    size: Annotated[int | None, typer.Option(metavar="PX", help="Short side of the result, pixels.")] = _D.size,
    watermark: Annotated[bool, typer.Option("--watermark", help="Write “synthetic” into the picture.")] = _D.watermark,
    output_smooth: Annotated[float, typer.Option(help="Of the pictures over time: 0 to 1.")] = _D.output_smooth,
    person: PersonOption = _D.person,
    paste_back: Annotated[
        bool, typer.Option("--paste-back", help="Of a head: back into the picture that it was cut out of.")
    ] = _D.paste_back,
    device: DeviceOption = _D.device,
    precision: PrecisionOption = _D.precision,
    restart: Annotated[bool, typer.Option("--restart", help="Do not continue an interrupted run.")] = _D.restart,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a video of an avatar doing what the person in the source does."""
    from . import forecast
    from .avatar import Avatar, latest_avatar
    from .device import choose
    from .drive import drive

    console = _console(ctx, goes_on=True)
    arguments.fraction("--smooth", smooth)
    arguments.fraction("--output-smooth", output_smooth)
    arguments.piece(start, end)
    if size is not None:
        arguments.within("--size", size, *SIZES)
    arguments.person(person)
    arguments.background(background, out)
    arguments.readable(source)
    arguments.writable(out, source, background)
    if not arguments.may_overwrite(out, yes, console):
        raise typer.Exit(1)
    chosen = DriveOptions(
        align=align, smooth=smooth, background=background, audio=audio, compare=compare, start=start, end=end,
        size=size, watermark=watermark, device=device, precision=precision, person=person, output_smooth=output_smooth,
        paste_back=paste_back, restart=restart,
    )  # fmt: skip
    who = Avatar.load(avatar) if avatar is not None else latest_avatar()
    with forecast.announced(
        lambda: forecast.drive(who, source, out, chosen, choose(device, precision)), console, yes=yes
    ) as progress:
        path = drive(who, source, out, chosen, progress=progress)
    console.result({"out": str(path), "avatar": who.name, "avatar_id": who.id}, f"Written: {path}")


@app.command()
def evaluate(
    ctx: typer.Context,
    clips: Annotated[
        list[Path],
        typer.Argument(
            metavar="CLIP...",
            help="Videos of one person each, or pairs NAME_me, NAME_drive; or street scenes: --labels.",
        ),
    ],
    init: Annotated[
        str, typer.Option(metavar="meta,…", help="What fine-tuning starts from: meta, pretrain, random, .safetensors.")
    ] = _joined(_E.init),
    frames: Annotated[
        str, typer.Option("--frames", "-k", metavar="K,…", help="How many frames to learn from.")
    ] = _joined(_E.frames),
    steps: Annotated[str, typer.Option("--steps", "-t", metavar="T,…", help="Fine-tuning steps.")] = _joined(_E.steps),
    split: Annotated[float, typer.Option(help="This part of a clip is learned from, the rest is truth.")] = _E.split,
    every: Annotated[int, typer.Option(help="Compare every so many-th frame only.")] = _E.every,
    model: Annotated[str, typer.Option(help="The model.")] = _E.model,
    crop: Annotated[
        Literal["auto", "head", "none"], typer.Option(help="Squares around the head, or whole pictures.")
    ] = _E.crop,
    labels: ScenesOption = [],  # noqa: B006
    size: Annotated[int, typer.Option(help="Short side of the avatars' pictures, pixels.")] = _E.size,
    device: DeviceOption = _E.device,
    precision: PrecisionOption = _E.precision,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = _E.seed,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a report there: JSON, Markdown, curves over K and T.")
    ] = None,
    yes: Anyway = False,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure: let people, or street scenes, re-enact their own videos, and compare with the truth.

    Lists (--init random,pretrain,meta --frames 1,3,5,10 --steps 0,20,200) are measured in all combinations.
    """
    from . import forecast
    from .device import choose
    from .evaluate import check, evaluate

    arguments.within("--every", every, 1, MAX_STEPS)
    arguments.within("--size", size, *SIZES)
    arguments.within("--seed", seed, 0, MAX_SEED)
    arguments.model(model)
    chosen = EvaluateOptions(
        init=tuple(word.strip() for word in init.split(",")),
        frames=arguments.numbers("--frames", frames, 1, MAX_FRAMES),
        steps=arguments.numbers("--steps", steps, 0, MAX_STEPS), split=split, size=size, every=every, model=model,
        crop=crop, labels=tuple(map(str, labels)), device=device, precision=precision, seed=seed,
    )  # fmt: skip
    check(chosen)
    for path in (*clips, *labels, *(Path(start) for start in chosen.init if start.endswith(".safetensors"))):
        arguments.readable(path)
    if json is not None:
        arguments.writable_folder(json)
    if out is not None:
        arguments.report_folder(out)
    console = _console(ctx)
    with forecast.announced(
        lambda: forecast.evaluate(clips, chosen, choose(device, precision)), console, yes=yes
    ) as progress:
        report = evaluate(clips, chosen, progress=progress)
    if json is not None:
        report.save_json(json)
    if out is not None:
        report.save(out)
    if console.json:
        console.result(report)
    else:
        console.table({key: key for key in ("clip", "method", *report.columns())}, report.rows(), "Nothing.")
    if report.failures:  # the warnings told which and why
        raise typer.Exit(1)


@app.command()
def prepare(
    ctx: typer.Context,
    clips: Annotated[
        list[Path],
        typer.Argument(metavar="CLIPS...", help="Videos of one person each, or folders; or street scenes: --labels."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The corpus's folder; an interrupted run goes on.")],
    side: Annotated[int, typer.Option(help="Short side of the training pictures, pixels.")] = _C.side,
    fps: Annotated[float, typer.Option(help="Frames per second that are kept.")] = _C.fps,
    quality: Annotated[int, typer.Option(help="Of the WebP pictures, 1 to 100.")] = _C.quality,
    licence: Annotated[str, typer.Option(help="Of the clips.")] = _C.licence,
    source: Annotated[str | None, typer.Option(help="Where the clips come from.")] = _C.source,
    table: Annotated[
        Path | None, typer.Option(help="A CSV file: clip, and any of person, source, licence, split (train, val).")
    ] = None,
    val: Annotated[float, typer.Option(help="Share of the persons kept for validation.")] = _C.val,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = _C.workers,
    crop: Annotated[
        Literal["none", "head"], typer.Option(help="Whole pictures, or squares around the head.")
    ] = _C.crop,
    labels: ScenesOption = [],  # noqa: B006
    yes: Anyway = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack videos into a corpus to train on; or, with --labels, street scenes: videos or folders of pictures."""
    from . import forecast
    from .training.prepare import PrepareOptions, prepare

    console = _console(ctx, goes_on=True)
    options = PrepareOptions(
        side, fps, quality, licence, source, None if table is None else str(table), val, workers, crop,
        tuple(map(str, labels)),
    )  # fmt: skip
    with forecast.announced(lambda: forecast.prepare(clips, out, options), console, yes=yes) as progress:
        index = prepare(clips, out, options, progress=progress)
    left = index["left_out"]
    console.result(
        {"corpus": str(out), "clips": len(index["clips"]), "left_out": left},
        f"{out}: {len(index['clips'])} clips packed" + (f", {len(left)} left out." if left else "."),
    )


@app.command()
def train(
    ctx: typer.Context,
    stage: Annotated[
        Literal["pretrain", "meta", "parsing"],
        typer.Argument(metavar="pretrain|meta|parsing", help="All frames, or Reptile; or dance-paper's judge."),
    ],
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A folder that prepare made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder; an interrupted run goes on.")],
    model: Annotated[str, typer.Option(help="The model.")] = _T.model,
    preset: PresetOption = "small",
    config: Annotated[
        list[str],
        typer.Option(metavar="NAME=VALUE", help="Of the network: width=24, conditioning=labels; may be repeated."),
    ] = [],  # noqa: B006
    init: Annotated[Path | None, typer.Option(help="Weights to start from: another run's .safetensors.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps, or meta-iterations.")] = _T.steps,
    minutes: Annotated[float | None, typer.Option(help="End after this time, with what there is.")] = _T.minutes,
    batch: Annotated[int, typer.Option(help="Pairs per step.")] = _T.batch,
    rate: Annotated[float, typer.Option(help="Adam's learning rate.")] = _T.rate,
    frames: Annotated[str, typer.Option("--frames", "-k", help="K of each task; several: one is drawn.")] = "5",
    inner: Annotated[int, typer.Option("--inner", "-t", help="Steps of each task (T); meta only.")] = _T.inner,
    epsilon: Annotated[float, typer.Option(help="First meta learning rate; it falls to 0.")] = _T.epsilon,
    tasks: Annotated[int, typer.Option(help="Tasks per meta-iteration, over all processes.")] = _T.tasks,
    draws: Annotated[int, typer.Option(help="Tasks drawn of each person.")] = _T.draws,
    critic: Annotated[bool, typer.Option("--critic/--no-critic", help="Whether critics judge, too.")] = _T.critic,
    freeze: Annotated[bool, typer.Option("--freeze-critic", help="Do not meta-learn the critics.")] = _T.freeze,
    side: Annotated[int, typer.Option(help="Short side of the training pictures, pixels.")] = _T.side,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = _T.seed,
    device: DeviceOption = _T.device,
    precision: PrecisionOption = _T.precision,
    workers: Annotated[int, typer.Option(help="Processes that draw the tasks; 0: one per core.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what the run's folder holds.")] = False,
    yes: Anyway = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the weights that everybody starts from. `torchrun -m retarget train …` uses several GPUs or machines."""
    from . import forecast
    from .device import choose
    from .models import configuration
    from .training.train import TrainOptions, train

    arguments.model(model)
    arguments.within("--seed", seed, 0, MAX_SEED)
    sizes: dict[str, Any] = arguments.config(config)
    if stage != "parsing":
        sizes = configuration(model, preset) | sizes
    options = TrainOptions(
        stage, model, sizes, None if init is None else str(init), steps, minutes, batch, rate,
        arguments.counts("--frames", frames), inner, epsilon, tasks, draws, critic, freeze, side, seed, device,
        precision,
    )  # fmt: skip
    console = _console(ctx, goes_on=True)
    speaks = os.environ.get("RANK", "0") == "0"  # one of several processes
    with forecast.announced(
        lambda: forecast.train(corpus, out, options, choose(device, precision), workers) if speaks else None,
        console,
        yes=yes,
    ) as progress:
        done = train(corpus, out, options, restart=restart, progress=progress, workers=workers)
    if not speaks:
        return
    figures = ", ".join(f"{k} {number(v)}" for k, v in done.figures.items())
    console.result(
        {"weights": str(done.weights), "steps": done.steps, "finished": done.finished} | done.figures,
        f"{done.weights}: {done.steps} of {steps} steps" + (f" ({figures})." if figures else "."),
    )


@app.command()
def doctor(
    ctx: typer.Context,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look whether everything works on this machine, and how fast."""
    from .doctor import examine

    console = _console(ctx)
    checks = examine(device, precision, progress=console)
    good = all(check.status != "fail" for check in checks)
    lines = []
    for check in checks:
        lines.append(
            f"{check.status.upper() if check.status == 'fail' else check.status:<5} {check.name:<10} {check.text}"
        )
        if check.remedy:
            lines.append(f"{'':17}→ {check.remedy}")
    lines.append("Everything needed works." if good else "Something that is needed does not work.")
    console.result({"ok": good, "checks": [asdict(check) for check in checks]}, *lines)
    if not good:
        raise typer.Exit(1)


@avatars.command("list")
def avatars_list(ctx: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """All avatars, the one personalised last first."""
    from .avatar import avatar_names, list_avatars

    console = _console(ctx)
    found = list_avatars()
    rows = [
        {**_describe(a), "picture": f"{a.size[0]}x{a.size[1]}", "made": a.meta.created[:16].replace("T", " "),
         "disk": readable(a.bytes)}
        for a in found
    ]  # fmt: skip
    columns = {"name": "name", "model": "model", "picture": "picture", "frames": "frames", "made": "made (UTC)"}
    console.table({**columns, "disk": "size"}, rows, "There is no avatar yet. Make one: retarget personalize me.mp4")
    for name in sorted(set(avatar_names()) - {a.name for a in found}):
        console.warn(f"The avatar {name} cannot be read; retarget avatars show {name} says why.")


@avatars.command("show")
def avatars_show(ctx: typer.Context, name: Name, json: Json = False, quiet: Quiet = False) -> None:
    """Everything that an avatar knows about itself."""
    from .avatar import Avatar

    avatar = Avatar.load(name)
    data = _describe(avatar)
    lines = [f"{key}: {_inline(value)}" for key, value in data.items() if key not in ("config", "extra")]
    console = _console(ctx)
    console.result(data, *lines)


@avatars.command("rm")
def avatars_rm(ctx: typer.Context, name: Name, yes: Yes = False, json: Json = False, quiet: Quiet = False) -> None:
    """Delete an avatar."""
    from .avatar import avatar_names, remove

    console = _console(ctx)
    if name in avatar_names() and not yes:
        answer = console.ask(f"Delete the avatar {name}?")
        if answer is None:
            raise UsageError(f"Deleting {name} needs a yes, and nobody is there to ask.", "Say it with --yes.")
        if not answer:
            raise typer.Exit(1)
    remove(name)
    console.result({"removed": name}, f"Deleted: {name}")


@avatars.command("export")
def avatars_export(
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="By default NAME.zip here.")] = None,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write an avatar as one zip file, to take it elsewhere."""
    from .avatar import Avatar, export

    console = _console(ctx)
    avatar = Avatar.load(name)
    target = file if file is not None else Path(f"{avatar.name}.zip")
    arguments.writable_folder(target)
    if not arguments.may_overwrite(target, yes, console):
        raise typer.Exit(1)
    path = export(avatar, target)
    console.result({"avatar": avatar.name, "out": str(path)}, f"Written: {path} ({readable(path.stat().st_size)})")


@avatars.command("import")
def avatars_import(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What retarget avatars export wrote.")],
    name: Annotated[str | None, typer.Option(help="Its name here; by default its own.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take in an avatar from elsewhere."""
    from .avatar import import_avatar

    avatar = import_avatar(file, name)
    _console(ctx).result(_describe(avatar), f"Avatar {avatar.name}: {avatar.path}")


@weights.command("list")
def weights_list(ctx: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """Which weights there are, and whether they are on this machine."""
    from .weights import entries, is_here

    console = _console(ctx)
    lines = entries()
    rows = [
        {**asdict(line), "here": is_here(line), "size": "–" if line.bytes is None else readable(line.bytes)}
        for line in lines
    ]
    columns = ("name", "kind", "size", "licence", "corpus", "here")
    text_rows = [{**row, "here": "yes" if row["here"] else "no"} for row in rows]
    console.table({c: c for c in columns}, rows if console.json else text_rows, "There are no weights.")


@weights.command("pull")
def weights_pull(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="By default all.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download weights, and verify them."""
    from .weights import pull

    console = _console(ctx)
    for line, path in pull(name, progress=console):
        console.result({"name": line.name, "path": str(path), "sha256": line.sha256}, f"{line.name}: {path}")


@weights.command("verify")
def weights_verify(ctx: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """Compare every file on this machine with its sha256."""
    from .errors import WeightsError
    from .weights import verify

    console = _console(ctx)
    states = verify()
    rows = [{"name": line.name, "state": state, "path": str(path) if path else None} for line, state, path in states]
    console.table({"name": "name", "state": "state", "path": "file"}, rows, "There are no weights.")
    for _, state, path in states:
        if state == "wrong":
            raise WeightsError(f"{path} has the wrong sha256.", "Delete it and run retarget weights pull.")


def _console(ctx: typer.Context, *, goes_on: bool = False) -> Console:
    """Where the command prints; `goes_on`: whether the same command later goes on where it was interrupted."""
    console = ctx.find_object(Console)
    assert console is not None  # main passes it
    console.goes_on = goes_on
    return console


# What results look like.


def _describe(avatar: Avatar) -> dict[str, Any]:
    data = {**avatar.meta.to_json(), "path": str(avatar.path), "preview": str(avatar.preview), "bytes": avatar.bytes}
    del data["schema"]
    return data


def _quality(avatar: Avatar) -> str:
    """The figures of an avatar in one line: before → after fine-tuning where there are both."""
    quality = avatar.meta.quality
    parts = []
    for key, value in quality.items():
        if f"{key}_before" in quality:
            parts.append(f"{key} {number(quality[f'{key}_before'])} → {number(value)}")
        elif not key.endswith("_before"):
            parts.append(f"{key} {number(value)}")
    return ", ".join(parts) or "not measured (no fine-tuning)"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(v)}" for key, v in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_inline, value)) or "–"
    return "–" if value is None else number(value) if isinstance(value, float) else str(value)
