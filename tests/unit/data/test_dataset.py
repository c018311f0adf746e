import gc
import itertools
import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from tests import tiny
from tests.clips import AUDIO_DIM, make_face_info, make_frame, shown_index, write_clip, write_dataset
from vexpress.audio_features import audio_windows
from vexpress.cli import cache_latents as cache_latents_program
from vexpress.cli.program import EXIT_BAD_INPUT, run_program
from vexpress.data.config import DataConfig
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.formats import (
    ClipRecord,
    load_audio_embeds,
    load_face_info,
    save_audio_embeds,
    save_face_info,
    save_metadata,
)
from vexpress.data.latent_cache import (
    LATENT_CACHE_KEYS,
    CachedLatents,
    autoencoder_digest,
    cache_facts,
    latent_cache_path,
    read_cached,
)
from vexpress.data.loading import SampleStream, start_workers
from vexpress.data.order import random_frame_ids
from vexpress.data.transforms import lip_mask_box
from vexpress.diffusion.latents import scale_latents
from vexpress.errors import InputError
from vexpress.media.keypoints import render_v_kps
from vexpress.weights import load_vae

ROOT = Path(__file__).parents[3]
TRAINING_CLIP = ROOT.parent / "shared" / "samples" / "training_clip"
NUM_CLIPS = 3


def make_config(*meta_paths: Path, **changes) -> DataConfig:
    """Small, and without crop and flip unless asked for."""
    defaults = {
        "train_width": 64,
        "train_height": 64,
        "num_frames": 4,
        "reference_margin": 20,
        "crop_ratio": (1, 1),
        "flip_rate": 0.0,
    }
    return DataConfig(meta_paths=list(map(str, meta_paths)), **defaults | changes)


def assert_same(sample: dict, expected: dict) -> None:
    assert sample.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            value, found = (tensor.nan_to_num(-9) for tensor in (value, sample[key]))  # unknown attributes
            assert torch.equal(found, value)
        else:
            assert sample[key] == value


@pytest.fixture(scope="module")
def meta_path(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("clips"), NUM_CLIPS)


@pytest.fixture(scope="module")
def dataset(meta_path) -> TalkingFaceDataset:
    return TalkingFaceDataset(make_config(meta_path), seed=0)


@pytest.fixture
def augmented(meta_path) -> TalkingFaceDataset:
    return TalkingFaceDataset(make_config(meta_path, crop_ratio=(0.8, 1.1), flip_rate=0.5), seed=0)


@pytest.fixture
def clip(tmp_path) -> ClipRecord:
    return write_clip(tmp_path)


# One sample -----------------------------------------------------------------------------------------------------------
def test_shapes_types_and_ranges(augmented):
    sample = augmented[0]
    assert sample.pop("number") == 0
    shapes = {key: tuple(value.shape) for key, value in sample.items() if key != "name"}
    assert shapes == {
        "pixel_values": (3, 4, 64, 64),
        "reference_image": (3, 64, 64),
        "kps_images": (3, 4, 64, 64),
        "audio_windows": (4, 10, AUDIO_DIM),
        "lip_masks": (1, 4, 8, 8),
        "eye_masks": (1, 4, 8, 8),
        "attributes": (4, 6),
        "frame_ids": (4,),
    }
    assert sample.pop("frame_ids").dtype == torch.int64
    assert Path(sample.pop("name")).suffix == ".mp4"
    assert {tensor.dtype for tensor in sample.values()} == {torch.float32}
    for key, low, high in (
        ("pixel_values", -1, 1),
        ("reference_image", -1, 1),
        ("kps_images", 0, 1),
        ("lip_masks", 0, 1),
    ):
        assert low <= sample[key].min() < low + 0.1
        assert high - 0.1 < sample[key].max() <= high


def test_size_is_width_by_height(meta_path):
    config = make_config(meta_path, train_width=48, train_height=96)
    sample = TalkingFaceDataset(config, seed=0, latent_downsampling=4)[0]
    assert sample["pixel_values"].shape == sample["kps_images"].shape == (3, 4, 96, 48)
    assert sample["reference_image"].shape == (3, 96, 48)
    assert sample["lip_masks"].shape == (1, 4, 24, 12)


@pytest.mark.parametrize("sample_rate", [1, 3])
def test_every_part_belongs_to_its_frame(meta_path, sample_rate):
    dataset = TalkingFaceDataset(make_config(meta_path, sample_rate=sample_rate), seed=1)
    for number in range(8):
        sample = dataset[number]
        frame_ids = sample["frame_ids"].tolist()
        assert np.diff(frame_ids).tolist() == [sample_rate] * 3
        assert [shown_index(frame.permute(1, 2, 0)) for frame in sample["pixel_values"].unbind(1)] == frame_ids
        reference = shown_index(sample["reference_image"].permute(1, 2, 0))
        assert reference <= frame_ids[0] - 20 or reference >= frame_ids[-1] + 20

        pixels = ((sample["pixel_values"] + 1) * 127.5).permute(1, 2, 3, 0)
        originals = torch.from_numpy(np.stack([make_frame(i) for i in frame_ids])).float()
        assert (pixels - originals).abs().mean() < 4

        info = make_face_info(60)
        kps_images = np.stack([render_v_kps(info.kps[i, :3], 64, 64) for i in frame_ids])
        np.testing.assert_array_equal((sample["kps_images"] * 255).byte().permute(1, 2, 3, 0), kps_images)
        for i, mask in zip(frame_ids, sample["lip_masks"][0]):
            left, top, right, bottom = lip_mask_box(info.landmark_2d_106[i], 2.0) // 8
            expected = torch.zeros(8, 8)
            expected[top : bottom + 1, left : right + 1] = 1
            assert torch.equal(mask, expected)

        hidden_states = load_audio_embeds(sample["name"].replace(".mp4", "_audio_embeds.safetensors"))
        assert torch.equal(sample["audio_windows"], audio_windows(hidden_states, 60)[frame_ids])


def test_crop_and_flip_keep_lips_and_mask_together(augmented):
    num_flipped = 0
    for number in range(12):
        sample = augmented[number]
        red, green, blue = ((sample["pixel_values"] + 1) * 127.5).unbind(0)
        lips = (red > 110) & (green < 60) & (blue < 80)
        assert (lips.flatten(1).sum(1) > 5).all()
        mask = sample["lip_masks"][0].repeat_interleave(8, 1).repeat_interleave(8, 2).bool()
        assert mask[lips].all()
        left_eye, right_eye, _ = (sample["kps_images"] == 1).unbind(0)
        columns = torch.arange(64).float()
        assert (left_eye * columns).sum() / left_eye.sum() < (right_eye * columns).sum() / right_eye.sum()
        first_bit = sample["pixel_values"][0, :, 0:4, 0:8].mean((1, 2)) > 0  # top left, unless mirrored
        num_flipped += int((first_bit.long() != sample["frame_ids"] % 2).any())
    assert 1 < num_flipped < 11


def test_reference_of_a_mirrored_sample_is_mirrored(meta_path):
    plain, mirrored = (TalkingFaceDataset(make_config(meta_path, flip_rate=rate), seed=0)[0] for rate in (0, 1))
    for key in ("pixel_values", "reference_image"):
        assert torch.equal(mirrored[key], plain[key].flip(-1))
    assert torch.equal(mirrored["audio_windows"], plain["audio_windows"])


@pytest.mark.parametrize(
    ("num_clip_frames", "num_frames", "sample_rate", "margin"),
    [(38, 8, 1, 30), (61, 8, 1, 30), (61, 8, 4, 5), (9, 1, 1, 0)],
)
def test_all_allowed_frames_and_no_others_are_drawn(num_clip_frames, num_frames, sample_rate, margin):
    rng = np.random.default_rng(0)
    span = (num_frames - 1) * sample_rate
    seen = set()
    for _ in range(6000):
        frame_ids, reference = random_frame_ids(rng, num_clip_frames, num_frames, sample_rate, margin)
        seen.add((int(frame_ids[0]), reference))
    firsts = range(num_clip_frames - span)
    references = range(num_clip_frames)
    allowed = {
        (first, reference)
        for first, reference in itertools.product(firsts, references)
        if max(first - reference, reference - first - span, 0) >= margin
    }
    assert seen <= allowed
    assert {first for first, _ in seen} == {first for first, _ in allowed}
    assert {reference for _, reference in seen} == {reference for _, reference in allowed}


# Order and randomness -------------------------------------------------------------------------------------------------
def test_each_epoch_has_every_clip_once_in_another_order(meta_path):
    dataset = TalkingFaceDataset(make_config(meta_path, train_width=16, train_height=16), seed=0)
    assert len(dataset) == NUM_CLIPS
    samples = [dataset[number] for number in range(8 * NUM_CLIPS)]
    orders = {tuple(sample["name"] for sample in samples[i : i + NUM_CLIPS]) for i in range(0, len(samples), NUM_CLIPS)}
    assert {len(set(order)) for order in orders} == {NUM_CLIPS}
    assert len(orders) > 1
    starts = {(sample["name"], int(sample["frame_ids"][0])) for sample in samples}
    assert len(starts) > 2 * NUM_CLIPS


def test_a_sample_depends_on_seed_and_number_alone(meta_path, augmented):
    expected = augmented[5]
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    again = TalkingFaceDataset(augmented.config, seed=0)
    assert_same(again[5], expected)
    other = TalkingFaceDataset(augmented.config, seed=1)
    assert any(not torch.equal(other[n]["frame_ids"], augmented[n]["frame_ids"]) for n in range(4))


def test_workers_change_nothing(augmented):
    def batches(num_workers: int) -> list[dict]:
        loader = DataLoader(augmented, batch_size=2, sampler=SampleStream(), num_workers=num_workers)
        return list(itertools.islice(start_workers(loader), 4))

    for batch, expected in zip(batches(2), batches(0)):
        assert batch["pixel_values"].shape == (2, 3, 4, 64, 64)
        assert_same(batch, expected)


def test_workers_start_beside_a_decoder_that_is_garbage(augmented):
    """Freed in a forked worker, it would wait without end for threads that are not there."""
    container = av.open(str(augmented.records[0].video))
    container.streams.video[0].thread_type = "AUTO"
    cycle = [container, list(container.decode(video=0))]
    cycle.append(cycle)
    del container, cycle
    loader = DataLoader(
        augmented,
        batch_size=1,
        sampler=SampleStream(),
        num_workers=1,
        worker_init_fn=lambda _: gc.collect(),
        timeout=60,
    )
    assert next(start_workers(loader))["number"].tolist() == [0]


def test_resuming_in_mid_epoch_goes_on_where_it_stopped(dataset):
    def names_and_frames(start: int, num_batches: int) -> list:
        loader = DataLoader(dataset, batch_size=2, sampler=SampleStream(start))
        return [(batch["name"], batch["frame_ids"].tolist()) for batch in itertools.islice(loader, num_batches)]

    uninterrupted = names_and_frames(0, 5)
    assert names_and_frames(0, 2) + names_and_frames(4, 3) == uninterrupted


def test_two_processes_see_what_one_with_twice_the_batch_sees():
    def numbers(rank: int, num_processes: int) -> list[int]:
        return list(itertools.islice(SampleStream(10, rank, num_processes), 12 // num_processes))

    assert list(itertools.chain(*zip(numbers(0, 2), numbers(1, 2)))) == numbers(0, 1) == list(range(10, 22))


# Clips that cannot serve ----------------------------------------------------------------------------------------------
def cut_face_info(record: ClipRecord, num_frames: int) -> None:
    save_face_info(record.face_info, make_face_info(num_frames))


def break_landmarks(record: ClipRecord) -> None:
    info = load_face_info(record.face_info)
    info.landmark_2d_106[7, 3] = np.nan
    save_face_info(record.face_info, info)


def break_embeds(record: ClipRecord) -> None:
    save_audio_embeds(record.audio_embeds, torch.full((119, AUDIO_DIM), float("inf")))


BAD_CLIPS: dict[str, tuple[Callable[[ClipRecord], None], str]] = {
    "no video": (lambda record: record.video.unlink(), r"video=\S*clip\.mp4: cannot be read"),
    "unreadable video": (
        lambda record: record.video.write_bytes(b"no video" * 99),
        r"clip\.mp4: FFmpeg cannot read it",
    ),
    "no face info": (lambda record: record.face_info.unlink(), r"face_info \S*clip_face_info\.npz: does not exist"),
    "short face info": (lambda record: cut_face_info(record, 57), r"clip_face_info\.npz has 57 frames, the video 60"),
    "long face info": (lambda record: cut_face_info(record, 63), r"has 63 frames, the video 60"),
    "NaN landmarks": (break_landmarks, r"landmark_2d_106 of 1 frames is not finite, the first is frame 7"),
    "damaged embeds": (lambda record: record.audio_embeds.write_bytes(b"x"), r"audio_embeds \S* is damaged"),
    "infinite embeds": (break_embeds, r"audio_embeds \S*: not all values are finite"),
    "short embeds": (
        lambda record: save_audio_embeds(record.audio_embeds, load_audio_embeds(record.audio_embeds)[:60]),
        r"audio_embeds \S*: .*60 states are 1.20 s, the frames last 2.40 s",
    ),
    "short": (lambda record: write_clip(record.video.parent, num_frames=23), "has 23 frames, needed are 24"),
}


@pytest.mark.parametrize(("break_clip", "reason"), BAD_CLIPS.values(), ids=BAD_CLIPS)
def test_clip_that_cannot_serve_is_left_out_with_its_reason(tmp_path, meta_path, clip, caplog, break_clip, reason):
    break_clip(clip)
    save_metadata(tmp_path / "m.json", [replace(clip, num_frames=None)])
    with pytest.raises(InputError, match=rf"none of 1 clips can serve .*{reason}"):
        TalkingFaceDataset(make_config(tmp_path / "m.json"), seed=0)

    with caplog.at_level(logging.WARNING):
        dataset = TalkingFaceDataset(make_config(meta_path, tmp_path / "m.json"), seed=0)
    assert len(dataset) == NUM_CLIPS
    [(name, found)] = dataset.rejected
    assert name == str(clip.video)
    [warning] = [message for message in caplog.messages if "left out" in message]
    assert f"1 of {NUM_CLIPS + 1} clips" in warning
    assert found in warning
    assert {dataset[number]["name"] for number in range(NUM_CLIPS)}.isdisjoint({name})


@pytest.mark.parametrize("difference", [-2, 2])
def test_counts_that_nearly_agree_use_the_smaller(tmp_path, difference):
    """The audio spans the video, whatever of it has face info."""
    clip = write_clip(tmp_path, num_frames=12)
    cut_face_info(clip, 12 + difference)
    save_metadata(tmp_path / "m.json", [clip])
    dataset = TalkingFaceDataset(make_config(tmp_path / "m.json", num_frames=1, reference_margin=0), seed=0)
    samples = [dataset[number] for number in range(60)]
    frame_ids = torch.cat([sample["frame_ids"] for sample in samples])
    assert frame_ids.unique().tolist() == list(range(min(12, 12 + difference)))
    windows = audio_windows(load_audio_embeds(clip.audio_embeds), 12)
    assert torch.equal(torch.cat([sample["audio_windows"] for sample in samples]), windows[frame_ids])


def test_metadata_that_promises_too_many_frames(tmp_path, clip):
    """Frames that nobody can decode are not drawn if face info ends before them, and else named when they are read."""
    save_metadata(tmp_path / "m.json", [replace(clip, num_frames=62)])
    dataset = TalkingFaceDataset(make_config(tmp_path / "m.json", reference_margin=56), seed=0)
    assert all(dataset[number]["frame_ids"].max() < 60 for number in range(4))

    cut_face_info(clip, 62)
    dataset = TalkingFaceDataset(make_config(tmp_path / "m.json", reference_margin=58), seed=0)
    with pytest.raises(InputError, match=r"clip\.mp4: frame 61 is needed, but 60 frames are there"):
        dataset[0]


def test_wrong_width_of_hidden_states_names_row_and_widths(tmp_path, meta_path):
    with pytest.raises(
        InputError, match=rf"metadata \S+ row 1: .*clip_0_audio_embeds.* {AUDIO_DIM} wide, needed is 768"
    ):
        TalkingFaceDataset(make_config(meta_path), seed=0, audio_dim=768)
    records = [write_clip(tmp_path, "a"), write_clip(tmp_path, "b", audio_dim=32)]
    save_metadata(tmp_path / "m.json", records)
    with pytest.raises(InputError, match=rf"m\.json row 2: .* 32 wide, needed is {AUDIO_DIM}"):
        TalkingFaceDataset(make_config(tmp_path / "m.json"), seed=0)


@pytest.mark.parametrize(
    ("changes", "downsampling", "message"),
    [
        ({"meta_paths": []}, 8, "meta_paths is empty"),
        ({"meta_paths": ["none.json"]}, 8, "none.json: cannot be read"),
        ({"train_width": 72}, 16, "data.train_width=72: must be a multiple of 16"),
        ({"latent_cache_dir": "x", "crop_ratio": (0.9, 1)}, 8, r"crop_ratio=\[0.9, 1\]: cached latents"),
    ],
)
def test_unusable_configuration(meta_path, changes, downsampling, message):
    with pytest.raises(InputError, match=message):
        TalkingFaceDataset(replace(make_config(meta_path), **changes), seed=0, latent_downsampling=downsampling)


def test_malformed_row_is_named(tmp_path, clip):
    (tmp_path / "m.json").write_text(json.dumps([{"video": str(clip.video)}]))
    with pytest.raises(InputError, match="row 1 of 1"):
        TalkingFaceDataset(make_config(tmp_path / "m.json"), seed=0)


# Cached latents -------------------------------------------------------------------------------------------------------
@pytest.fixture
def cache_latents(monkeypatch, capsys, vae_path):
    """Runs the program with these flags; gives its exit code and what it printed."""
    monkeypatch.setattr(cache_latents_program, "set_up_logging", lambda: None)

    def run(*flags: str | Path) -> tuple[int, str]:
        flags = ("--vae_path", vae_path, "--width", "32", "--height", "32", "--device", "cpu", *flags)
        monkeypatch.setattr(sys, "argv", ["cache_latents.py", *map(str, flags)])
        try:
            code = run_program(cache_latents_program.main)
        except SystemExit as error:
            code = error.code
        output = capsys.readouterr()
        return code, output.out + (output.err if code == EXIT_BAD_INPUT else "")

    return run


@pytest.fixture(scope="module")
def vae_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vae")
    tiny.vae().save_pretrained(path)
    return path


def test_cached_latents_are_those_of_the_pixels(tmp_path, cache_latents):
    cache_dir = tmp_path / "cache"
    clips = [write_clip(tmp_path, name, num_frames=12) for name in ("a", "b")]
    save_metadata(tmp_path / "m.json", clips)
    result = cache_latents("--meta_path", tmp_path / "m.json", "--cache_dir", cache_dir)
    assert result == (0, f"{cache_dir}: 2 clips encoded, 0 were there, 0 failed\n")

    config = make_config(tmp_path / "m.json", train_width=32, train_height=32, reference_margin=4, flip_rate=0.5)
    plain = TalkingFaceDataset(config, seed=0)
    cached = TalkingFaceDataset(replace(config, latent_cache_dir=str(cache_dir)), seed=0)
    vae, kinds = tiny.vae(), set()
    for number in range(6):
        sample, expected = cached[number], plain[number]
        pixels = torch.cat([expected.pop("pixel_values").transpose(0, 1), expected.pop("reference_image")[None]])
        with torch.inference_mode():
            latents = scale_latents(vae, vae.encode(pixels).latent_dist.mean)
        torch.testing.assert_close(sample.pop("latents"), latents[:-1].transpose(0, 1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(sample.pop("reference_latents"), latents[-1], atol=1e-5, rtol=1e-4)
        assert_same(sample, expected)
        kinds.add((pixels[:, 0, :2, :4].mean((1, 2)) > 0).long().tolist()[:-1] == (sample["frame_ids"] % 2).tolist())
    assert kinds == {True, False}  # some are mirrored


def test_latents_are_cached_once_and_missing_ones_named(tmp_path, cache_latents, caplog):
    cache_dir = tmp_path / "cache"
    clips = [write_clip(tmp_path, "a", num_frames=12), write_clip(tmp_path, "b", num_frames=12)]
    save_metadata(tmp_path / "m.json", clips)
    cache_dir.mkdir()
    done = latent_cache_path(cache_dir, clips[0].video)
    clips[1].video.write_bytes(b"no video")
    assert cache_latents("--meta_path", tmp_path / "m.json", "--cache_dir", cache_dir)[0] == 1
    made, inode = done.read_bytes(), done.stat().st_ino
    os.utime(clips[0].video)  # touched, and still the same
    result = cache_latents("--meta_path", tmp_path / "m.json", "--cache_dir", cache_dir)
    assert result == (1, f"{cache_dir}: 0 clips encoded, 1 were there, 1 failed\n")
    assert "b.mp4: FFmpeg cannot read it" in caplog.text
    assert (done.read_bytes(), done.stat().st_ino) == (made, inode)  # not encoded anew
    assert list(cache_dir.iterdir()) == [done]

    write_clip(tmp_path, "b", num_frames=12)
    config = make_config(tmp_path / "m.json", reference_margin=4, latent_cache_dir=str(cache_dir))
    fitting = TalkingFaceDataset(replace(config, train_width=32, train_height=32), seed=0)
    assert [(Path(name).name, "cached latents" in reason) for name, reason in fitting.rejected] == [("b.mp4", True)]
    with pytest.raises(InputError, match=r"12 frames of \[4, 4\], needed are 12 of \[8, 8\].*missing or damaged"):
        TalkingFaceDataset(config, seed=0)


def pad(path: Path, num_bytes: int) -> None:
    """Makes an MP4 this large."""
    with open(path, "ab") as file:
        missing = num_bytes - path.stat().st_size
        file.write(missing.to_bytes(4, "big") + b"free" + bytes(missing - 8))


def test_latents_of_another_video_are_made_anew(tmp_path, cache_latents):
    clips = [write_clip(tmp_path, name, num_frames=12, seed=seed) for seed, name in enumerate("ab")]
    pad(clips[0].video, 100_000)
    save_metadata(tmp_path / "m.json", clips)
    cache_dir = tmp_path / "cache"
    config = make_config(tmp_path / "m.json", train_width=32, train_height=32, reference_margin=4)
    config = replace(config, latent_cache_dir=str(cache_dir))
    assert cache_latents("--meta_path", tmp_path / "m.json", "--cache_dir", cache_dir)[0] == 0
    assert TalkingFaceDataset(config, seed=0).rejected == []

    shutil.copy(clips[1].video, clips[0].video)
    pad(clips[0].video, 100_000)  # another video under the same name, as large
    [(name, reason)] = TalkingFaceDataset(config, seed=0).rejected
    assert (name, "are of another video than" in reason) == (str(clips[0].video), True)
    result = cache_latents("--meta_path", tmp_path / "m.json", "--cache_dir", cache_dir)
    assert result == (0, f"{cache_dir}: 1 clips encoded, 1 were there, 0 failed\n")
    assert TalkingFaceDataset(config, seed=0).rejected == []


def test_latents_of_another_autoencoder_are_refused_and_made_anew(tmp_path, cache_latents, vae_path):
    save_metadata(tmp_path / "m.json", [write_clip(tmp_path, "a", num_frames=12)])
    cache_dir = tmp_path / "cache"
    config = make_config(tmp_path / "m.json", train_width=32, train_height=32, reference_margin=4)
    config = replace(config, latent_cache_dir=str(cache_dir))
    other = tiny.vae()
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    arguments = ["--meta_path", tmp_path / "m.json", "--cache_dir", cache_dir]
    assert cache_latents(*arguments, "--vae_path", tmp_path / "other")[0] == 0

    digest = autoencoder_digest(load_vae(vae_path), vae_path)
    TalkingFaceDataset(config, seed=0, autoencoder=autoencoder_digest(other, tmp_path / "other"))
    with pytest.raises(InputError, match=r"data.latent_cache_dir=\S+: \S+ is of another autoencoder; make them again"):
        TalkingFaceDataset(config, seed=0, autoencoder=digest)
    assert cache_latents(*arguments) == (0, f"{cache_dir}: 1 clips encoded, 0 were there, 0 failed\n")
    TalkingFaceDataset(config, seed=0, autoencoder=digest)


def test_a_video_that_cannot_be_read_is_named(tmp_path):
    known = CachedLatents(tmp_path / "x.safetensors", (1, 4, 8, 8), "a", "b", "c")
    for read in (known.are_of, lambda path: cache_facts(path, "a")):
        with pytest.raises(InputError, match="gone.mp4: cannot be read"):
            read(tmp_path / "gone.mp4")


def test_an_autoencoder_is_known_by_its_encoder_and_scale_alone(tmp_path, vae_path):
    vae = tiny.vae()
    digest = autoencoder_digest(vae, vae_path)
    for dtype in (torch.float16, torch.bfloat16):
        assert autoencoder_digest(load_vae(vae_path, dtype), vae_path) == digest
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1.1)
    assert autoencoder_digest(vae, vae_path) == digest
    vae.register_to_config(scaling_factor=0.5)
    assert autoencoder_digest(vae, vae_path) != digest


def test_latents_of_unknown_making_are_believed_with_a_warning_but_not_their_channels(tmp_path, caplog, cache_latents):
    clips = [write_clip(tmp_path, name, num_frames=12) for name in ("a", "b")]
    save_metadata(tmp_path / "m.json", clips)
    cache_dir = tmp_path / "cache"
    cache_dir.mkdir()
    latents = {key: torch.zeros(12, 8, 4, 4) for key in LATENT_CACHE_KEYS}
    for clip in clips:
        save_file(latents, latent_cache_path(cache_dir, clip.video))
    config = make_config(tmp_path / "m.json", train_width=32, train_height=32, reference_margin=4)
    config = replace(config, latent_cache_dir=str(cache_dir))
    with pytest.raises(InputError, match=r"data.latent_cache_dir=\S+: \S+ has 8 channels, needed are 4; make them"):
        TalkingFaceDataset(config, seed=0, latent_channels=4, autoencoder="some")
    dataset = TalkingFaceDataset(config, seed=0, latent_channels=8, autoencoder="some")
    assert (len(dataset), caplog.text.count("of an earlier version")) == (2, 1)
    cache_latents("--meta_path", tmp_path / "m.json", "--cache_dir", cache_dir)
    assert all(read_cached(path).autoencoder for path in cache_dir.iterdir())  # made anew


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width", "30"], "--width 30: must be a multiple of 8"),
        (["--vae_path", "none"], "--vae_path none: no such folder"),
        (["--meta_path", "none.json"], "none.json: cannot be read"),
    ],
)
def test_program_names_the_flag(tmp_path, cache_latents, meta_path, flags, message):
    code, output = cache_latents("--meta_path", meta_path, "--cache_dir", tmp_path, *flags)
    assert code == EXIT_BAD_INPUT
    assert message in output
    assert len(output.splitlines()) == 1


# A real clip ----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not TRAINING_CLIP.exists(), reason="the sample training clip is not beside the repository")
@pytest.mark.parametrize("num_frames", [8, 20])
def test_real_released_clip(tmp_path, num_frames):
    rows = [{"video": "clip.mp4", "face_info": "face_info.pt", "audio_embeds": "aud_embeds.pt"}]
    rows = [{key: str(TRAINING_CLIP / name) for key, name in row.items()} for row in rows]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    config = DataConfig(meta_paths=[str(tmp_path / "m.json")], num_frames=num_frames, train_width=256, train_height=256)
    dataset = TalkingFaceDataset(config, seed=0, audio_dim=768)
    assert not dataset.rejected
    for number in range(4):
        sample = dataset[number]
        assert sample["pixel_values"].shape == (3, num_frames, 256, 256)
        assert sample["audio_windows"].shape == (num_frames, 10, 768)
        assert sample["frame_ids"].max() <= 60
        share = sample["lip_masks"].mean((0, 2, 3))
        assert ((share > 0.01) & (share < 0.15)).all()
