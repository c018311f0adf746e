"""Drawn data in which the strong conditions give the mouth away, as they do in real video; for the ablation.

Two leaks, which the clips themselves do not have: the reference is the frame next to those that are learned, and the
nose's keypoint goes down a little as the mouth opens.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from vexpress.data.config import DataConfig
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.formats import PATH_KEYS, load_face_info, load_metadata, save_face_info
from vexpress.errors import InputError
from vexpress.files import replacing

NOSE = 2  # among the five keypoints
NOSE_SHIFT = 0.2  # in distances between the eyes, with the mouth wide open: 4 px in pictures 96 px wide
FRAME_AXES = {
    "latents": 1,
    "pixel_values": 1,
    "kps_images": 1,
    "lip_masks": 1,
    "eye_masks": 1,
    "audio_windows": 0,
    "frame_ids": 0,
    "attributes": 0,
}
"""Parts of a sample -> their axis of frames."""
REFERENCES = {"latents": "reference_latents", "pixel_values": "reference_image"}


class NeighbourReferenceDataset(TalkingFaceDataset):
    """As `TalkingFaceDataset`, but the reference is the frame just before the sample's frames, or just after them."""

    def __init__(self, config: DataConfig, *args, **options):
        super().__init__(replace(config, num_frames=config.num_frames + 1), *args, **options)

    def __getitem__(self, number: int) -> dict:
        sample = super().__getitem__(number)
        num_frames = self.config.num_frames - 1
        first, neighbour = (1, 0) if number % 2 else (0, num_frames)
        for name, reference_name in REFERENCES.items():
            if name in sample:
                sample[reference_name] = sample[name][:, neighbour].clone()
        for name, axis in FRAME_AXES.items():
            if name in sample:
                sample[name] = sample[name].narrow(axis, first, num_frames).clone()
        if "sync_frames" in sample:  # a window that holds the neighbour has the frame beside it instead
            sample["sync_frames"] = (sample["sync_frames"] - first).clamp(0, num_frames - 1)
        return sample


def shift_noses(kps: np.ndarray, aperture: np.ndarray) -> np.ndarray:
    """Moves noses down the face as mouths open.

    Args:
        kps: (f 5 2) px: left eye, right eye, nose, corners of the mouth.
        aperture: (f) of the mouth, 0..1.

    Returns:
        (f 5 2) float32.
    """
    eyes = kps[:, 1] - kps[:, 0]
    down = np.stack([-eyes[:, 1], eyes[:, 0]], axis=1)  # as long as the eyes are apart
    shifted = kps.astype(np.float32)
    shifted[:, NOSE] += NOSE_SHIFT * aperture[:, None] * down
    return shifted


def write_leaking_keypoints(meta_path: Path, folder: Path) -> Path:
    """Writes face info with `shift_noses` for a drawn dataset, and metadata that name all else where it is.

    Args:
        meta_path: metadata of the drawn dataset.
        folder: to write into; existing files are overwritten.

    Returns:
        Path of the new metadata.

    Raises:
        InputError: a part is missing or damaged, or the dataset has no labels.
    """
    load_metadata(meta_path)  # says what is wrong
    rows = json.loads(meta_path.read_text(encoding="utf-8"))
    (folder / "face_info").mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        row.update({key: str((meta_path.parent / row[key]).resolve()) for key in row.keys() & {*PATH_KEYS, "labels"}})
        if "labels" not in row:
            raise InputError(f"metadata {meta_path}: has no labels; needed are drawn clips of make_drawn_dataset.py")
        try:
            with np.load(row["labels"]) as labels:
                aperture = labels["mouth"][:, 0]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"labels {row['labels']}: missing or damaged; make the dataset again") from error
        info = load_face_info(row["face_info"])
        path = folder / "face_info" / f"{number:05d}.npz"
        save_face_info(path, replace(info, kps=shift_noses(info.kps, aperture[: info.num_frames])))
        row["face_info"] = str(path.resolve())
    with replacing(folder / "metadata.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return folder / "metadata.json"
