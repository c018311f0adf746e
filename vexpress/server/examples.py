"""Faces, voices and motions to try, from the model folder or the embedded pack. Their names are keys, never paths."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vexpress.errors import InputError
from vexpress.media.random_access import read_frames_at
from vexpress.model_folder import EMBEDDED_MODEL_DIR

NUM_FACES = 5
KINDS = ("portrait", "audio", "motion")


@dataclass(frozen=True)
class Examples:
    """Files by kind, then by name."""

    files: dict[str, dict[str, Path]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def path(self, kind: str, name: str) -> Path:
        """Where an example lies.

        Raises:
            InputError: there is none of this name.
        """
        known = self.files[kind]
        if name not in known:
            raise InputError(f"is no example; there are {', '.join(known) or 'none'}", f"{kind}_example", name[:100])
        return known[name]

    def names(self) -> dict[str, list[str]]:
        """All names by kind."""
        return {kind: list(files) for kind, files in self.files.items()}


def find_examples(model_dir: Path, cache_dir: Path) -> Examples:
    """Lists the examples of a model, or those of the embedded one.

    Args:
        model_dir: may have a folder `examples`, and held-out clips, whose faces and voices become examples, too.
        cache_dir: where pictures of clips' first frames go.
    """
    folder = next(folder for folder in (model_dir, EMBEDDED_MODEL_DIR) if (folder / "examples").is_dir())
    found = Examples()
    places = {
        "portrait": ("portrait.png",),
        "audio": ("speech.wav",),
        "motion": ("driving.mp4",),
    }
    for kind, names in places.items():
        found.files[kind].update({name: folder / "examples" / name for name in names})
        found.files[kind] = {name: path for name, path in found.files[kind].items() if path.is_file()}
    clips = sorted((folder / "heldout" / "clips").glob("*.mp4"))
    cache_dir.mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(itertools.islice(clips, NUM_FACES), start=2):
        picture = cache_dir / f"face-{number}.png"
        if not picture.is_file():
            [frame] = read_frames_at(clip, [0], "video")
            Image.fromarray(np.asarray(frame)).save(picture)
        found.files["portrait"][picture.name] = picture
        found.files["audio"][f"voice-{number}"] = clip
    return found
