"""Where models and files are, by names that anybody who reaches the server may send: none leads out of its folder."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from vexpress.errors import InputError
from vexpress.model_folder import EMBEDDED_MODEL_DIR, LAYOUT

EMBEDDED = "embedded model of drawn faces"
WEIGHTS_DIR = Path(LAYOUT["denoising_unet_path"]).parts[0]
"""What makes a folder one of a model."""

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")
AUDIO_SUFFIXES = (".mp3", ".wav", ".flac", ".m4a", ".ogg", ".opus", *VIDEO_SUFFIXES)
WINDOWS_OUTPUT = re.compile(r"^[A-Za-z]:[\\/](?:.*[\\/])?ComfyUI[\\/]output[\\/](.+)$", re.IGNORECASE)


def find_models(roots: Iterable[str | os.PathLike]) -> dict[str, Path]:
    """Lists model folders: those directly under the roots, a root that is one itself, and last the embedded one.

    Args:
        roots: folders such as models/vexpress; of two models of one name the first is taken.

    Returns:
        Name -> folder.
    """
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        inside = sorted(root.iterdir()) if root.is_dir() else []
        for folder in (*inside, root):
            if (folder / WEIGHTS_DIR).is_dir():
                found.setdefault(folder.name, folder)
    return found | {EMBEDDED: EMBEDDED_MODEL_DIR}


def model_folder(name: str, roots: Sequence[str | os.PathLike]) -> Path:
    """The folder of a model that `find_models` lists.

    Raises:
        InputError: there is none of this name.
    """
    models = find_models(roots)
    if name not in models:
        there = f"is no folder of a model in {' or '.join(map(str, roots))}; there are: {', '.join(models)}"
        raise InputError(f"{there}. {_advice(roots, name)}", "model_folder", repr(name))
    return models[name]


def find_adapters(roots: Iterable[str | os.PathLike]) -> dict[str, Path]:
    """Lists .safetensors files in and below the roots: name relative to its root -> file."""
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        for path in sorted(root.rglob("*.safetensors")) if root.is_dir() else []:
            found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def adapter_file(name: str, roots: Sequence[str | os.PathLike]) -> Path:
    """The file that `find_adapters` lists under a name.

    Raises:
        InputError: there is none.
    """
    adapters = find_adapters(roots)
    if name not in adapters:
        where = " or ".join(map(str, roots))
        raise InputError(f"is no file in {where}; put what `vexpress person` has made there", "lora", repr(name))
    return adapters[name]


def old_model_folder(typed: str, pack_dir: Path, roots: Sequence[str | os.PathLike]) -> Path:
    """The folder that the old pack's `vexpress_model_path` means.

    Args:
        typed: the name of a model, or a path below the pack's folder or one of the roots, such as "./model_ckpts".
        pack_dir: this pack's folder.
        roots: as of `find_models`.

    Raises:
        InputError: it leads elsewhere, or to no model.
    """
    allowed = [pack_dir, *map(Path, roots)]
    for root in allowed:
        folder = _inside(root, typed.replace("\\", "/"))
        if folder and (folder / WEIGHTS_DIR).is_dir():
            return folder
    models = find_models(roots)
    if typed in models:
        return models[typed]
    problem = f"is no folder of a model in {' or '.join(map(str, allowed))}. {_advice(roots, 'model_ckpts')}"
    raise InputError(problem, "vexpress_model_path", repr(typed))


def _advice(roots: Sequence[str | os.PathLike], name: str) -> str:
    folder = _inside(Path(roots[0]), name) or Path(roots[0], "released")
    command = f"python -m vexpress download --model_dir {folder}"
    return f"Get the released models with this, run in the pack's folder: {command}"


def list_files(folder: str | os.PathLike, suffixes: Sequence[str] = ()) -> list[str]:
    """Names of the files in a folder with one of the suffixes, or of all; sorted."""
    if not os.path.isdir(folder):
        return []
    names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    return sorted(name for name in names if not suffixes or Path(name).suffix.lower() in suffixes)


def file_in(folder: str | os.PathLike, name: str, field: str) -> Path:
    """The file of a name in a folder, or in a folder below it.

    Raises:
        InputError: it is not there, or the name leads out of the folder.
    """
    path = _inside(Path(folder), name)
    if path is None or not path.is_file():
        raise InputError(f"is no file in {folder}; upload it, or choose another", field, repr(name))
    return path


def _inside(folder: Path, name: str) -> Path | None:
    """What a relative path leads to, unless it leads out of the folder or cannot be a path."""
    try:
        path = (folder / name).resolve()
        path.exists()  # a name may be too long
    except (OSError, ValueError):
        return None
    return path if path.is_relative_to(folder.resolve()) else None


def old_output_file(typed: str, output_dir: str | os.PathLike) -> Path:
    r"""The file in the output folder that the old pack's `output_path` means.

    A name or a relative path is taken from the output folder. Workflows of Windows hold paths such as
    E:\ComfyUI\output\test.mp4; their part behind the output folder is taken. The file is an .mp4.

    Raises:
        InputError: it leads out of the output folder.
    """
    output_dir = Path(output_dir).resolve()
    refusal = InputError(f"must be a file in {output_dir}", "output_path", repr(typed))
    if os.name != "nt" and PureWindowsPath(typed).drive:
        elsewhere = WINDOWS_OUTPUT.match(typed)
        if not elsewhere:
            raise refusal
        typed = elsewhere[1].replace("\\", "/")
    path = _inside(output_dir, typed)
    if path is None or path == output_dir:
        raise refusal
    return path if path.suffix.lower() == ".mp4" else path.with_name(f"{path.name}.mp4")


def fingerprint(*paths: str | os.PathLike) -> str:
    """Something that changes when files do, those inside of folders included."""
    facts = []
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                status = file.stat()
                facts.append((str(file), status.st_mtime_ns, status.st_size))
    return str(hash(tuple(facts)))
