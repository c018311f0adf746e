"""Makes an adapter of one person from a video of them: prepares it, encodes its frames, trains.

vexpress person me.mp4 --model_dir model_ckpts --output_dir runs/me
vexpress generate --model_dir model_ckpts --lora runs/me/run/export/adapter.safetensors ...

The same command goes on where it was cut off.
"""

import logging
import math
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli import cache_latents, prepare, train
from vexpress.cli.parser import ArgumentParser, add_options, refuse_unused
from vexpress.cli.program import set_up_logging
from vexpress.errors import InputError
from vexpress.fields import check_range, kind_of
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.prepare.settings import PrepareSettings

if TYPE_CHECKING:
    from vexpress.data.formats import ClipRecord

logger = logging.getLogger("person")

DEFAULT_CONFIG = Path("training_configs/person.yaml")
PREPARING = tuple(field for field in fields(PrepareSettings) if field.name not in ("size", "format"))
MOST_PRIOR_CLIPS = 64
FILES = ("insightface_model_path", "syncnet_path")
"""Flags of `vexpress prepare` beside its options."""


def build_parser() -> ArgumentParser:
    """The flags; those of the clips are preparation's."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path, help="video of the person, with their speech; half a minute or more")
    parser.add_argument("--output_dir", type=Path, required=True, help="made if missing; one per person")
    parser.add_argument("--model_dir", type=Path, default=Path("model_ckpts"), help="the model that the adapter is for")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="YAML file of the training")
    parser.add_argument("--prior_meta_path", type=Path, help="metadata JSON of clips of others, to be mixed in")
    parser.add_argument("--prior_share", type=float, default=0.5, help="of the samples, that are of these others")
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained, and stop")
    for name in FILES:
        parser.add_argument(f"--{name}", help="as `vexpress prepare` has it; unset: of --model_dir")
    add_options(parser.add_argument_group("clips; unset: as `vexpress prepare` has them"), PREPARING, default=SUPPRESS)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change of the configuration; repeatable"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """A video -> clips -> latents -> an adapter."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    check_range("prior_share", args.prior_share, 0.01, 0.99)
    refuse_unused(parser.given(), {} if args.prior_meta_path else {"prior_share": "without `prior_meta_path`"})
    if not args.video.is_file():
        raise InputError("no such file", "video", args.video)
    if not args.model_dir.is_dir():
        raise InputError("no such folder", "model_dir", args.model_dir)
    if not args.config.is_file():
        raise InputError("no such file", "config", args.config)
    set_up_logging()
    from vexpress.data.formats import VIDEO_SUFFIXES
    from vexpress.training.config_file import load_config

    if args.video.name.startswith(".") or not args.video.name.lower().endswith(VIDEO_SUFFIXES):
        raise InputError(f"must end in {', '.join(VIDEO_SUFFIXES)}, and not start with a dot", "video", args.video)
    prior = load_prior(args.prior_meta_path) if args.prior_meta_path else []

    # 1. what the steps have in common
    config_path = write_config(args)
    training = ["--config", str(config_path), *args.set]
    config = load_config(config_path, args.set)
    data = config.data
    if data.train_width != data.train_height:
        raise InputError("prepared clips are square: set both alike", "data.train_width", data.train_width)
    if args.dry_run:
        train.main(["--config", str(config_path), "--dry_run", *args.set])
        return

    # 2. clips of the person, and of others if there are some
    args.output_dir.joinpath("source").mkdir(parents=True, exist_ok=True)
    link_source(args.video, args.output_dir / "source")
    prepare.main(prepare_arguments(args, data.train_width))
    write_metadata(args, prior)

    # 3. latents, then the adapter
    encoding = ["--meta_path", str(metadata_path(args)), "--cache_dir", str(args.output_dir / "latents")]
    encoding += ["--vae_path", str(args.model_dir / LAYOUT["vae_path"])]
    cache_latents.main([*encoding, "--width", str(data.train_width), "--height", str(data.train_height)])
    train.main(training)
    adapter = Path(config.output_dir) / "export" / "adapter.safetensors"
    print(f"{adapter}: use it with `vexpress generate --model_dir {args.model_dir} --lora {adapter} ...`")


def metadata_path(args: Namespace) -> Path:
    """Of all clips that are trained on."""
    return args.output_dir / "metadata.json"


def load_prior(path: Path) -> "list[ClipRecord]":
    """Reads the metadata of clips of others.

    Raises:
        InputError: they cannot be read, or there are none.
    """
    from vexpress.data.formats import load_metadata

    try:
        records = load_metadata(path)
    except InputError as error:
        raise InputError(error.problem, "prior_meta_path") from error
    if not records:
        raise InputError("holds no clips", "prior_meta_path", path)
    return records


def write_config(args: Namespace) -> Path:
    """Writes the configuration of the training, which `vexpress train` takes as well.

    Raises:
        InputError: the folder cannot be made, or a path cannot be in a configuration.
    """
    import yaml

    from vexpress.data.metadata_files import is_utf8
    from vexpress.files import replacing

    for name in ("output_dir", "model_dir", "config"):
        path = str(getattr(args, name).resolve())
        if "${" in path or not is_utf8(path):
            raise InputError("a configuration cannot hold ${ or bytes that are no UTF-8; rename it", name, path)
    folder, model = args.output_dir.resolve(), ModelPaths.from_model_dir(args.model_dir)
    settings = {
        "base": str(args.config.resolve()),
        "output_dir": str(folder / "run"),
        "vae_model_path": str(model.vae_path.resolve()),
        "audio_model_path": str(model.audio_encoder_path.resolve()),
        "init": {"source": "stage", "path": str(args.model_dir.resolve())},
        "data": {"meta_paths": [str(metadata_path(args).resolve())], "latent_cache_dir": str(folder / "latents")},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", "output_dir", args.output_dir) from error
    check_folder(args, folder)
    with replacing(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / "config.yaml"


def check_folder(args: Namespace, folder: Path) -> None:
    """Raises an InputError if what is written into the folder would replace what is read, or what is not ours."""
    import yaml

    from vexpress.files import check_output_path

    config, metadata = folder / "config.yaml", folder / metadata_path(args).name
    for path in (config, metadata):
        check_output_path(path, "output_dir", [args.config, args.prior_meta_path, args.video])
    if config.exists() or metadata.exists():
        try:
            is_ours = Path(yaml.safe_load(config.read_bytes())["output_dir"]).name == "run"
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            problem = "holds another config.yaml or metadata.json; give a folder of its own"
            raise InputError(problem, "output_dir", args.output_dir)


def link_source(video: Path, folder: Path) -> None:
    """Has a folder of sources that holds this video alone.

    Raises:
        InputError: it holds another one.
    """
    link = folder / video.name
    others = [path.name for path in folder.iterdir() if path != link]
    if others or (link.is_symlink() and link.resolve() != video.resolve()):
        problem = f"is of another video ({', '.join(others) or link.resolve()}); give a folder of its own"
        raise InputError(problem, "output_dir", folder.parent)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(video.resolve())


def prepare_arguments(args: Namespace, size: int) -> list[str]:
    """The flags of `vexpress prepare`."""
    folders = {"input_dir": args.output_dir / "source", "output_dir": args.output_dir / "data"}
    flags = [f"--{name}={path}" for name, path in (folders | {"model_dir": args.model_dir, "size": size}).items()]
    flags += [f"--{name}={path}" for name in FILES if (path := getattr(args, name)) is not None]
    for field in PREPARING:
        if hasattr(args, field.name):
            value = getattr(args, field.name)
            is_switch = kind_of(field) is bool
            flags.append(f"--{'' if value else 'no_'}{field.name}" if is_switch else f"--{field.name}={value}")
    return flags


def write_metadata(args: Namespace, prior: "Sequence[ClipRecord]") -> None:
    """Writes the metadata of the person's clips and those of others.

    Raises:
        InputError: no clip of the person can serve.
    """
    from vexpress.data.formats import load_metadata, save_metadata

    own = load_metadata(args.output_dir / "data" / "metadata.json")
    if not own:
        where = args.output_dir / "data" / "rejected.jsonl"
        raise InputError(f"no part of it can serve; {where} says why", "video", args.video)
    records = mix_clips(own, prior, args.prior_share)
    logger.info("%d clips of the person, and %d of others", len(own), len(set(records) - set(own)))
    save_metadata(metadata_path(args), records)


def mix_clips(own: "Sequence[ClipRecord]", prior: "Sequence[ClipRecord]", share: float) -> "list[ClipRecord]":
    """Clips of which an epoch, one sample of each, has this share of others: the person's come several times.

    Args:
        own: of the person.
        prior: of others; `MOST_PRIOR_CLIPS` of them are taken, evenly. None: the person's alone are the result.
        share: of samples of others, above 0 and below 1.
    """
    step = max(1, math.ceil(len(prior) / MOST_PRIOR_CLIPS))
    prior = list(prior)[::step]
    num_own = max(len(own), round(len(prior) * (1 - share) / share))
    return [own[i % len(own)] for i in range(num_own)] + prior
