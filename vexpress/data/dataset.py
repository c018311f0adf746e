"""Training samples: frames of a talking face with a reference frame, V-Kps images, audio windows and lip masks.

Samples are numbered from 0 without end: number n is a sample of one clip, in an order that is shuffled anew each epoch,
and all that is random about it comes from the seed and n alone. So workers, processes and restarts do not matter, and
a position in the training data is a single number.
"""

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from vexpress.audio_encoders import EncoderRecord
from vexpress.audio_features import audio_windows
from vexpress.data.attributes import mirror_attributes
from vexpress.data.clips import Clip, num_frames_needed, read_clip
from vexpress.data.config import DataConfig
from vexpress.data.formats import ClipRecord, load_audio_embeds, load_metadata
from vexpress.data.indexed import IndexedClips
from vexpress.data.latent_cache import load_latents
from vexpress.data.metadata_files import is_parquet
from vexpress.data.order import BalancedOrder, ShuffledOrder, random_frame_ids
from vexpress.data.sync_windows import sync_window
from vexpress.data.transforms import (
    central_geometry,
    random_flip,
    random_geometry,
    render_masks,
    scaled_box,
    transform_frames,
    transform_kps,
    transform_points,
)
from vexpress.errors import InputError
from vexpress.media.keypoints import render_v_kps
from vexpress.media.random_access import read_frames_at

logger = logging.getLogger(__name__)

NUM_NAMED_CLIPS = 20  # in a message
SAMPLE_STREAM = 1  # of random numbers; those in `vexpress.data.order` are others


class TalkingFaceDataset(Dataset):
    """Random training samples from clips; `len` is the number of clips, an epoch has one sample of each.

    `dataset[n]` is defined for each n >= 0 and always the same; `SampleStream` chooses the numbers. A sample is a
    dictionary, with f frames of h w latents or H W px, which torch's default collation accepts:

        pixel_values: (3 f H W) float32, -1..1.
        reference_image: (3 H W) float32, -1..1.
        kps_images: (3 f H W) float32, 0..1: left eye, right eye, nose.
        audio_windows: (f n d) float32.
        lip_masks: (1 f h w) float32, 0 or 1.
        eye_masks: (1 f h w) float32, 0 or 1.
        attributes: (f 6) float32, in the order of `vexpress.models.attributes.ATTRIBUTES`; NaN is not known.
        number: of the sample.
        name: path of the video.
        frame_ids: (f,) int64, numbers of the frames in the video.

    With `latent_cache_dir`, latents (c f h w) and reference_latents (c h w), float32 and scaled for diffusion, stand in
    the place of the pixels, and the crop is the frame's central square.

    Metadata in Parquet is an index that is trusted (see `vexpress.data.indexed`); of it, clips that are too short are
    left out, and a clip whose files are not as it says is an error when a sample is read. A JSON file is not trusted:
    a clip that cannot serve (see `vexpress.data.clips.read_clip`) is left out, with the reason in `rejected`.

    Args:
        config: what samples are made of.
        seed: 0 or more; other seeds give other samples in another order.
        latent_downsampling: px per latent, along each side.
        audio_dim: width that the audio's hidden states must have; None: all alike.
        audio_encoder: who must have made them; None: one for all.
        latent_channels: that cached latents must have; None: any.
        autoencoder: `vexpress.data.latent_cache.autoencoder_digest` of who must have made them; None: anyone.
        only_reference: samples have the reference's pixels or latents alone, which saves reading the frames.
        for_syncnet: samples have what `vexpress.data.sync_windows.sync_window` gives, too.

    Attributes:
        rejected: name of the video and reason, of each clip left out.
        summary: number of clips, and a digest of what makes sample n the one that it is: their names, lengths and
            values to balance by, in order.

    Raises:
        InputError: no metadata, malformed metadata, no `data.balance_by` in a row, no usable clip, hidden states of a
            wrong width or encoder, or cached latents of another autoencoder; when a sample is read, a video that is not
            what it was or is damaged.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        latent_downsampling: int = 8,
        audio_dim: int | None = None,
        audio_encoder: EncoderRecord | None = None,
        latent_channels: int | None = None,
        autoencoder: str | None = None,
        only_reference: bool = False,
        for_syncnet: bool = False,
    ):
        _check_config(config, latent_downsampling)
        self.config = config
        self.seed = seed
        self.only_reference, self.for_syncnet = only_reference, for_syncnet
        self.latent_downsampling = latent_downsampling
        self._audio_dim, self._audio_encoder = audio_dim, audio_encoder
        self._latent_channels, self._autoencoder = latent_channels, autoencoder
        self._warned = False
        self.rejected: list[tuple[str, str]] = []
        self._clips: list[Clip] = []
        self.indexed = [self._open_index(path) for path in config.meta_paths if is_parquet(path)]
        json_paths = [path for path in config.meta_paths if not is_parquet(path)]
        columns = [config.balance_by] if config.balance_by else []
        loaded = ((path, load_metadata(path, columns)) for path in json_paths)
        rows = [(f"metadata {path} row {row}", record) for path, some in loaded for row, record in enumerate(some, 1)]
        for where, record in rows:
            try:
                clip = read_clip(record, config, latent_downsampling)
            except InputError as error:
                self.rejected.append((str(record.video), " ".join(str(error).split())))
                continue
            self._check_audio(f"{where}: audio_embeds {record.audio_embeds}", clip.audio_dim, clip.audio_encoder)
            self._check_latents(clip)
            self._clips.append(clip)
        for index in self.indexed:
            for (dim, audio_encoder), row in index.audio_kinds.items():
                self._check_audio(f"metadata {index.path} row {row}", dim, audio_encoder)
            if index.rejected:
                logger.warning("metadata %s: %d clips are too short and left out", index.path, index.rejected)
        left_out = "; ".join(f"{name}: {reason}" for name, reason in self.rejected[:NUM_NAMED_CLIPS])
        left_out += f"; and {len(self.rejected) - NUM_NAMED_CLIPS} more" * (len(self.rejected) > NUM_NAMED_CLIPS)
        if not len(self):
            num_clips = len(rows) + sum(index.rejected for index in self.indexed)
            raise InputError(f"data.meta_paths: none of {num_clips} clips can serve ({left_out})")
        if self.rejected:
            logger.warning("%d of %d clips are left out: %s", len(self.rejected), len(rows), left_out)
        facts = self._facts(config.balance_by) if config.balance_by else []
        self._order = BalancedOrder(seed, facts) if facts else ShuffledOrder(seed, len(self))
        self.summary = self._summarize(facts)

    def _facts(self, name: str) -> list[str | int | float]:
        """The values of a column, of each clip."""
        known = (record.facts[name] for record in self.records)
        return [*known, *(fact for index in self.indexed for fact in index.facts(name))]

    def _summarize(self, facts: list[str | int | float]) -> str:
        lengths = ((clip.record.video.name, clip.num_frames) for clip in self._clips)
        digest = hashlib.sha256()
        for row in itertools.chain(lengths, *(index.lengths() for index in self.indexed), facts):
            digest.update(repr(row).encode())
        return f"{len(self)} clips ({digest.hexdigest()[:8]})"

    def _check_audio(self, where: str, audio_dim: int, audio_encoder: EncoderRecord) -> None:
        """Raises an InputError unless hidden states are of the width and encoder of all others."""
        self._audio_dim = self._audio_dim or audio_dim
        self._audio_encoder = self._audio_encoder or audio_encoder
        again = "extract them with the same audio encoder for all (vexpress extract-audio-embeddings --overwrite)"
        if audio_dim != self._audio_dim:
            raise InputError(f"{where}: its hidden states are {audio_dim} wide, needed is {self._audio_dim}; {again}")
        if not audio_encoder.fits(self._audio_encoder):
            made = f"by {audio_encoder}; needed is {self._audio_encoder}"
            raise InputError(f"{where}: its hidden states are {made}; {again}")
        if not self._audio_encoder.digest:
            self._audio_encoder = audio_encoder  # of which more may be known

    def _check_latents(self, clip: Clip) -> None:
        """Raises an InputError if cached latents are another autoencoder's; warns once where they do not say whose."""
        if clip.latents is None:
            return
        again = "make them again with `vexpress cache-latents` and the autoencoder that is trained with"
        if self._latent_channels not in (None, clip.latents.shape[1]):
            made = f"{clip.latents.path} has {clip.latents.shape[1]} channels, needed are {self._latent_channels}"
            raise InputError(f"{made}; {again}", "data.latent_cache_dir", self.config.latent_cache_dir)
        if not clip.latents.autoencoder and not self._warned:
            self._warned = True
            logger.warning(
                "data.latent_cache_dir %s: latents of an earlier version, which do not say of what autoencoder and "
                "video they are; if either may have changed, %s",
                self.config.latent_cache_dir,
                again,
            )
        if self._autoencoder and clip.latents.autoencoder not in ("", self._autoencoder):
            problem = f"{clip.latents.path} is of another autoencoder; {again}"
            raise InputError(problem, "data.latent_cache_dir", self.config.latent_cache_dir)

    def _open_index(self, path: str) -> IndexedClips:
        config = self.config
        index = IndexedClips(path, num_frames_needed(config))
        if config.latent_cache_dir is not None and not index.is_here:
            problem = "latents are cached of files of this machine only, not of shards or of a store"
            raise InputError(problem, "data.latent_cache_dir", config.latent_cache_dir)
        return index

    @property
    def records(self) -> list[ClipRecord]:
        """Rows of the clips that serve, of JSON metadata."""
        return [clip.record for clip in self._clips]

    def __len__(self) -> int:
        return len(self._clips) + sum(map(len, self.indexed))

    @contextlib.contextmanager
    def open(self, number: int) -> Iterator[tuple[Clip, str]]:
        """Gives a clip, whose files are here until the end, and the name of its video, wherever that is.

        Args:
            number: 0 to len - 1: clips of JSON metadata come first.

        Raises:
            InputError: a clip of an index is not as the index says.
        """
        if number < len(self._clips):
            clip = self._clips[number]
            yield clip, str(clip.record.video)
            return
        number -= len(self._clips)
        for index in self.indexed:
            if number < len(index):
                with index.open(number) as record:
                    clip = read_clip(record, self.config, self.latent_downsampling)
                    self._check_audio(index.name(number), clip.audio_dim, clip.audio_encoder)
                    self._check_latents(clip)
                    yield clip, index.name(number)
                return
            number -= len(index)

    def __getitem__(self, number: int) -> dict[str, Tensor | str | int]:
        with self.open(self._order[number]) as (clip, name):
            return self._build_sample(clip, number) | {"name": name}

    def _build_sample(self, clip: Clip, number: int) -> dict[str, Tensor | int]:
        config = self.config
        rng = np.random.default_rng((self.seed, SAMPLE_STREAM, number))
        frame_ids, reference_id = random_frame_ids(
            rng, clip.num_frames, config.num_frames, config.sample_rate, config.reference_margin
        )
        size = (config.train_width, config.train_height)
        wanted = [*([] if self.only_reference else frame_ids), reference_id]
        if clip.latents is None:
            geometry = random_geometry(rng, clip.frame_size, size, config.crop_ratio, config.flip_rate)
            frames = read_frames_at(clip.record.video, wanted)
            pixels = rearrange(transform_frames(frames, geometry), "f c h w -> c f h w")
            pixels = pixels.contiguous().float().div_(127.5).sub_(1)  # at once, it takes five times as long
            sample = {"pixel_values": pixels[:, :-1], "reference_image": pixels[:, -1]}
        else:
            geometry = central_geometry(clip.frame_size, size, random_flip(rng, config.flip_rate))
            latents = load_latents(clip.latents.path, wanted, geometry.flip)
            sample = {"latents": rearrange(latents[:-1], "f c h w -> c f h w"), "reference_latents": latents[-1]}

        kps = transform_kps(clip.kps[frame_ids], geometry)
        kps_images = torch.from_numpy(np.stack([render_v_kps(points, *size[::-1]) for points in kps]))
        lips = scaled_box(transform_points(clip.lip_corners[frame_ids], geometry), config.lip_mask_scale)
        eyes = scaled_box(transform_points(clip.eye_corners[frame_ids], geometry), 1.0)
        attributes = clip.attributes[frame_ids]
        if geometry.flip:
            attributes = mirror_attributes(attributes)
        hidden_states = load_audio_embeds(clip.record.audio_embeds)
        windows = audio_windows(hidden_states, clip.num_video_frames, config.num_padding_audio_frames)
        if self.only_reference:
            sample = {name: value for name, value in sample.items() if name.startswith("reference")}
        if self.for_syncnet:  # last, so that all else is the same without it
            sample |= sync_window(rng, clip.record, frame_ids, clip.fps, clip.boxes[frame_ids], geometry)
        return sample | {
            "kps_images": rearrange(kps_images, "f h w c -> c f h w").contiguous().float().div_(255),
            "audio_windows": windows[frame_ids],
            "lip_masks": render_masks(lips[:, None], *size[::-1], self.latent_downsampling)[None],
            "eye_masks": render_masks(eyes, *size[::-1], self.latent_downsampling)[None],
            "attributes": torch.from_numpy(attributes),
            "number": number,
            "frame_ids": torch.from_numpy(frame_ids),
        }


def _check_config(config: DataConfig, latent_downsampling: int) -> None:
    if not config.meta_paths:
        raise InputError("data.meta_paths is empty; name the metadata JSON of `vexpress prepare`")
    for key in ("train_width", "train_height"):
        if getattr(config, key) % latent_downsampling:
            raise InputError(
                f"data.{key}={getattr(config, key)}: must be a multiple of {latent_downsampling}, the px of a latent"
            )
    if config.latent_cache_dir is not None and tuple(config.crop_ratio) != (1, 1):
        raise InputError(
            "cached latents cannot be cropped; set data.crop_ratio=[1,1], or data.latent_cache_dir=null",
            "data.crop_ratio",
            list(config.crop_ratio),
        )
