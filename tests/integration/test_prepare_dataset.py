"""scripts/prepare_dataset on small generated videos, with the test face models and a tiny audio encoder."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from tests import tiny
from tests.integration.prepare_runs import (
    FPS,
    LIMITS,
    RATE_HZ,
    SIZE,
    clips_of,
    make_video,
    records_of,
    rejections_of,
    run_script,
    state_of,
    write_models,
)
from vexpress.audio_encoders import describe_encoder
from vexpress.data.formats import (
    FaceInfo,
    load_audio_embeds,
    load_audio_states,
    load_face_info,
    load_metadata,
    save_face_info,
)
from vexpress.media.audio import Audio, load_audio
from vexpress.media.faces import FaceAnalyzer
from vexpress.media.video import probe_video, read_frames
from vexpress.prepare import folder

TRAINING_CLIP_DIR = tiny.SHARED_DIR / "samples" / "training_clip"
TALK, ODD, CUT = "talk one.mp4", "sub dir/ünï 'quoted' \"x\".mkv", os.fsdecode(b"cut-\xff.mp4")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Flags that name a face model folder and an audio encoder folder."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    """Videos that serve and one of each kind that does not."""
    folder = tmp_path_factory.mktemp("raw")
    make_video(folder / TALK, 9)  # more than 2 s
    # 8 frames per second become 4, of which one lacks the face.
    make_video(folder / ODD, 10, 480, 360, fps=8, faces=lambda i: [] if i in (4, 5) else [((230, 180), 55)])
    make_video(folder / CUT, 8, faces=lambda i: [((90 if i < 4 else 230, 120), 32)])
    make_video(folder / "silent.mp4", 4, sound=lambda s: Audio(np.zeros((1, round(s * RATE_HZ)), np.float32), RATE_HZ))
    make_video(folder / "mute.mp4", 4, sound=None)
    make_video(folder / "two.mp4", 4, faces=lambda i: [((80, 120), 30), ((240, 120), 30)])
    make_video(folder / "tiny.mp4", 4, 96, 64, faces=lambda i: [((48, 32), 10)])
    make_video(folder / "far.mp4", 4, faces=lambda i: [((160, 120), 20)])
    make_video(folder / "empty.mp4", 4, faces=lambda i: [])
    make_video(folder / "short.mp4", 2)
    (folder / "broken.mp4").write_bytes(b"no video at all" * 100)
    (folder / "cut off.mp4").write_bytes((folder / TALK).read_bytes()[:2000])
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def prepare(models):
    """Runs prepare_dataset.py with the limits of these tests."""
    return lambda **flags: run_script("prepare_dataset", **{**LIMITS, **models, "device": "cpu", **flags})


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory, prepare, raw_dir):
    """What prepare_dataset.py makes of `raw_dir`; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("out") / "dataset"
    assert prepare(input_dir=raw_dir, output_dir=folder) == 0
    return folder


@pytest.fixture(scope="module")
def few_dir(tmp_path_factory, raw_dir):
    """Three short videos, of which two serve."""
    folder = tmp_path_factory.mktemp("few")
    make_video(folder / "a.mp4", 4)
    make_video(folder / "c.mp4", 4)
    shutil.copy(raw_dir / "silent.mp4", folder / "b.mp4")
    return folder


def test_each_video_gives_its_clips_or_a_reason(dataset_dir):
    reasons = {(row["video"], row["clip"]): row["reason"] for row in rejections_of(dataset_dir)}
    assert reasons == {
        ("silent.mp4", 0): "no_speech",
        ("mute.mp4", None): "no_audio",
        ("two.mp4", 0): "not_one_face",
        ("tiny.mp4", None): "low_resolution",
        ("far.mp4", 0): "face_too_small",
        ("empty.mp4", 0): "not_one_face",
        ("short.mp4", 0): "too_short",
        ("broken.mp4", None): "corrupt",
        ("cut off.mp4", None): "corrupt",
    }
    assert all(row["detail"] for row in rejections_of(dataset_dir))
    records = records_of(dataset_dir)
    num_frames = {source: [clip["num_frames"] for clip in record["clips"]] for source, record in records.items()}
    assert {source: counts for source, counts in num_frames.items() if counts} == {
        TALK: [4, 5],
        ODD: [5],
        CUT: [4, 4],
    }
    assert [clip["source_start_seconds"] for clip in records[TALK]["clips"]] == [0, 1]
    [odd] = records[ODD]["clips"]
    assert odd["num_interpolated_frames"] == 1
    rows = json.loads((dataset_dir / "metadata.json").read_text())
    assert len(rows) == 5 and all(row["duration"] == row["num_frames"] / FPS for row in rows)
    assert all(not os.path.isabs(row["video"]) and (dataset_dir / row["video"]).is_file() for row in rows)


def test_a_clip_is_square_with_sound_and_its_face_info_is_true(dataset_dir, models):
    analyzer = FaceAnalyzer(models["insightface_model_path"])
    for record in (clips_of(dataset_dir, TALK)[1], clips_of(dataset_dir, CUT)[0]):
        info = probe_video(record.video)
        assert (info.width, info.height, info.fps, info.has_audio) == (SIZE, SIZE, FPS, True)
        audio = load_audio(record.video)
        assert audio.sampling_rate_hz == RATE_HZ and len(audio.samples) == 2
        assert audio.samples.shape[1] == pytest.approx(record.duration * RATE_HZ, abs=2)
        embeds, made_by = load_audio_states(record.audio_embeds)
        assert made_by == describe_encoder(tiny.audio_encoder(), tiny.audio_processor())
        assert embeds.shape[1] == tiny.CASES["wav2vec2_config"]["hidden_size"]
        assert len(embeds) == pytest.approx(50 * record.duration, abs=2)
        face_info = load_face_info(record.face_info)
        assert face_info.num_frames == record.num_frames and face_info.embedding.shape[1] == 512
        for (_, frame), kps in zip(read_frames(record.video), face_info.kps):
            for face in analyzer.detect(frame):
                np.testing.assert_allclose(face.kps, kps, atol=1)


def test_the_crop_stands_still_and_leaves_the_margin(dataset_dir):
    record = clips_of(dataset_dir, TALK)[0]
    face_info = load_face_info(record.face_info)
    steps = np.diff(face_info.kps[:, 2, 0])
    assert steps == pytest.approx(SIZE / 229, abs=0.4)  # the nose moves 1 px per frame; the crop is 229 px
    sides = (face_info.bbox[:, 2:] - face_info.bbox[:, :2]).max(1)
    assert sides == pytest.approx(SIZE / 2.2, rel=0.03)  # 0.6 on each side


def test_a_second_run_does_nothing(dataset_dir, prepare, raw_dir, monkeypatch):
    monkeypatch.setattr(FaceAnalyzer, "detect", lambda *_: pytest.fail("a face was looked for"))
    before, metadata = state_of(dataset_dir), (dataset_dir / "metadata.json").read_bytes()
    assert prepare(input_dir=raw_dir, output_dir=dataset_dir) == 0
    assert state_of(dataset_dir) == before and (dataset_dir / "metadata.json").read_bytes() == metadata


def test_a_second_run_says_what_a_first_one_would(tmp_path, prepare, few_dir, monkeypatch, capsys):
    """Facts were corrected, sources withdrawn, corrected, copied anew, and replaced by others of their size."""
    raw, out = shutil.copytree(few_dir, tmp_path / "raw"), {"output_dir": tmp_path / "out"}
    shutil.copy(raw / "b.mp4", raw / "d.mp4")
    shutil.copy(raw / "a.mp4", raw / "f.mp4")
    make_video(raw / "e.mp4", 5)
    for name in "ace":
        (raw / f"{name}.json").write_text('{"language": "de", "take": 1}')
    assert prepare(input_dir=raw, **out) == 0
    state = state_of(tmp_path / "out")

    (raw / "a.json").write_text('{"person": "anna", "language": "fr"}')
    (raw / "c.json").unlink()
    (raw / "b.mp4").unlink()
    (raw / "f.mp4").unlink()
    shutil.copy(few_dir / "c.mp4", raw / "d.mp4")  # no longer silent
    shutil.copy(few_dir / "a.mp4", raw / "a.mp4")
    other, size = (few_dir / "b.mp4").read_bytes(), (raw / "e.mp4").stat().st_size
    assert size - len(other) >= 8
    atom = (size - len(other)).to_bytes(4, "big") + b"free"
    (raw / "e.mp4").write_bytes(other + atom.ljust(size - len(other), b"\0"))

    with monkeypatch.context() as patch:
        prepared = []
        prepare_source = folder.prepare_source
        patch.setattr(
            folder, "prepare_source", lambda path, *rest: prepared.append(path.name) or prepare_source(path, *rest)
        )
        assert prepare(input_dir=raw, **out) == 0
    assert prepared == ["d.mp4", "e.mp4"]
    assert "2 sources are no longer in the input folder: their 1 clips are left out" in capsys.readouterr().err
    after = state_of(tmp_path / "out")
    assert {path.parent.name[0] for path in state if path.suffix == ".mp4" and state[path] != after.get(path)} == {"e"}

    assert prepare(input_dir=raw, output_dir=tmp_path / "fresh") == 0
    for name in ("metadata.json", "metadata.parquet", "rejected.jsonl", "settings.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    for path in (tmp_path / "fresh" / "clips").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "fresh")).read_bytes()


def test_other_settings_need_another_folder(dataset_dir, prepare, raw_dir, capsys):
    before = state_of(dataset_dir)
    assert prepare(input_dir=raw_dir, output_dir=dataset_dir, margin=0.4) == 2
    error = capsys.readouterr().err
    assert f"--output_dir {dataset_dir}" in error and "margin 0.6" in error and "margin 0.4" in error
    assert state_of(dataset_dir) == before


def test_launched_processes_share_the_work_in_the_released_format(tmp_path, prepare, raw_dir, dataset_dir, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in (CUT, "silent.mp4"):
        shutil.copy(raw_dir / name, tmp_path / "in")
    out_dir, num_sources = tmp_path / "out", []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert prepare(input_dir=tmp_path / "in", output_dir=out_dir, format="pt") == 0
        num_sources.append(len(records_of(out_dir)))
    assert num_sources == [1, 2]
    assert len(load_metadata(out_dir / "metadata.json")) == 2 and len(rejections_of(out_dir)) == 1
    record, twin = clips_of(out_dir, CUT)[0], clips_of(dataset_dir, CUT)[0]
    assert record.face_info.suffix == record.audio_embeds.suffix == ".pt"
    for name, values in vars(load_face_info(record.face_info)).items():
        np.testing.assert_array_equal(values, getattr(load_face_info(twin.face_info), name))
    assert load_audio_embeds(record.audio_embeds).equal(load_audio_embeds(twin.audio_embeds))


def test_an_unexpected_failure_is_recorded_and_tried_again(tmp_path, prepare, few_dir, monkeypatch):
    source = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "out"}
    (tmp_path / "in").mkdir()
    shutil.copy(few_dir / "b.mp4", tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(FaceAnalyzer, "detect", lambda *_: 1 / 0)
        assert prepare(**source) == 0
    [row] = rejections_of(tmp_path / "out")
    assert row["reason"] == "failed" and "ZeroDivisionError" in row["detail"]
    assert prepare(**source) == 0
    [row] = rejections_of(tmp_path / "out")
    assert row["reason"] == "no_speech"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"input_dir": "nowhere"}, "--input_dir nowhere: no such folder"),
        ({"size": 100}, "--size 100: must be a multiple of 8"),
        ({"fps": "nan"}, "--fps nan: must be 0.1 to 240"),
        ({"max_clip_seconds": 1.5}, "--max_clip_seconds 1.5: must be twice --min_clip_seconds"),
        ({"margin": "-1"}, "--margin -1.0: must be 0 to 100"),
        ({"num_processes": 0}, "--num_processes 0: must be 1 to 1024"),
        ({"audio_encoder_path": "nowhere"}, "--audio_encoder_path nowhere: no such folder"),
        ({"insightface_model_path": "nowhere"}, "--insightface_model_path nowhere: is not a folder"),
        ({"format": "zip"}, "--format"),
    ],
)
def test_bad_flags_are_named(tmp_path, prepare, raw_dir, flags, message, capsys):
    assert prepare(**{"input_dir": raw_dir, "output_dir": tmp_path / "out", **flags}) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_videos_is_named(tmp_path, prepare, capsys):
    assert prepare(input_dir=tmp_path, output_dir=tmp_path / "out") == 2
    assert f"--input_dir {tmp_path}: holds no video" in capsys.readouterr().err


def test_verify_passes_and_draws(tmp_path, dataset_dir, capsys):
    sheet = tmp_path / "sheet.png"
    flags = {"meta_path": dataset_dir / "metadata.json", "contact_sheet": sheet, "num_clips": 2, "num_frames": 3}
    assert run_script("verify_dataset", **flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("ok")]) == 5
    assert lines[-1] == "5 clips: 5 ok, 0 warned, 0 failed"
    image = cv2.imread(str(sheet))
    assert image.shape[1] == 3 * 320 + 4 * 6 and image.shape[0] > 2 * 320


def test_verify_names_what_is_wrong(tmp_path, dataset_dir, capsys):
    clip = clips_of(dataset_dir, TALK)[0]
    rows = [{key: str(getattr(clip, key)) for key in ("video", "face_info", "audio_embeds")} for _ in range(7)]
    whole = load_face_info(clip.face_info)

    def tampered(name, **changes) -> str:
        save_face_info(tmp_path / name, FaceInfo(**{**vars(whole), **changes}))
        return str(tmp_path / name)

    shorter = FaceInfo(**{key: values[:-1] for key, values in vars(whole).items()})
    rows[1]["face_info"] = tampered("short.npz", **vars(shorter))
    landmarks = whole.landmark_2d_106.copy()
    landmarks[3, 60] = np.nan
    rows[2]["face_info"] = tampered("nan.npz", landmark_2d_106=landmarks)
    rows[3]["face_info"] = tampered("outside.npz", landmark_2d_106=whole.landmark_2d_106 + [0, 150])
    rows[4]["video"] = "gone.mp4"
    make_video(tmp_path / "long.mp4", 12, sound=None)
    rows[5] |= {"video": str(tmp_path / "long.mp4"), "num_frames": 4}
    rows[6]["num_frames"] = 3
    (tmp_path / "meta.json").write_text(json.dumps(rows))
    assert run_script("verify_dataset", meta_path=tmp_path / "meta.json", contact_sheet=tmp_path / "sheet.png") == 1
    table = capsys.readouterr().out.splitlines()[1:]
    expected = [
        "ok",
        "the video decodes to 4, face_info has 3",
        "landmark_2d_106 is not finite in 1 frames, the first is 3",
        f"lips outside of the {SIZE}x{SIZE} picture in 4 frames",
        "gone.mp4",
        "states are 0.98 s, the frames last 3.00 s; the video has no sound",
        "face_info has 4, the metadata says 3",
        "7 clips: 1 ok, 0 warned, 6 failed",
    ]
    assert len(table) == len(expected)
    for line, text in zip(table, expected):
        assert text in line
    assert [line.split()[0] for line in table[1:-1]] == ["FAIL"] * 6
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


def test_verify_names_bad_input(tmp_path, capsys):
    (tmp_path / "meta.json").write_text('[{"video": "a.mp4"}]')
    assert run_script("verify_dataset", meta_path=tmp_path / "meta.json") == 2
    assert "row 1" in capsys.readouterr().err
    (tmp_path / "meta.json").write_text("[]")
    assert run_script("verify_dataset", meta_path=tmp_path / "meta.json") == 2
    assert "holds no clips" in capsys.readouterr().err


@pytest.mark.skipif(not TRAINING_CLIP_DIR.is_dir(), reason="needs ../shared/samples/training_clip")
def test_verify_passes_on_the_released_sample(tmp_path, capsys):
    files = {"video": "clip.mp4", "face_info": "face_info.pt", "audio_embeds": "aud_embeds.pt"}
    (tmp_path / "meta.json").write_text(json.dumps([{k: str(TRAINING_CLIP_DIR / name) for k, name in files.items()}]))
    assert run_script("verify_dataset", meta_path=tmp_path / "meta.json") == 0
    assert "61   29.97     102    768" in capsys.readouterr().out


def test_clips_that_are_cut_already(tmp_path, raw_dir, models, capsys):
    for name in ("silent.mp4", "empty.mp4"):
        shutil.copy(raw_dir / name, tmp_path)
    faces = {"insightface_model_path": models["insightface_model_path"], "device": "cpu"}
    audio = {"audio_encoder_path": models["audio_encoder_path"], "device": "cpu"}
    assert run_script("extract_face_info", input_dir=tmp_path, **faces) == 1  # one has no face
    assert f"--input_dir {tmp_path}/empty.mp4: no face was found" in capsys.readouterr().err
    meta_path = tmp_path / "metadata.json"
    assert run_script("extract_audio_embeddings", input_dir=tmp_path, save_meta_path=meta_path, **audio) == 0
    [record] = load_metadata(meta_path)
    assert (record.video.name, record.num_frames, record.fps) == ("silent.mp4", 4, FPS)
    assert run_script("verify_dataset", meta_path=meta_path) == 0

    before = record.face_info.stat().st_mtime_ns
    assert run_script("extract_face_info", meta_path=meta_path, **faces) == 0
    assert record.face_info.stat().st_mtime_ns == before
    single = {"video_path": record.video, "save_path": tmp_path / "face.pt"}
    assert run_script("extract_face_info", **single, **faces) == 0
    for name, values in vars(load_face_info(tmp_path / "face.pt")).items():
        np.testing.assert_array_equal(values, getattr(load_face_info(record.face_info), name))
    single["save_path"] = tmp_path / "audio.pt"
    assert run_script("extract_audio_embeddings", **single, **audio) == 0
    assert load_audio_embeds(tmp_path / "audio.pt").equal(load_audio_embeds(record.audio_embeds))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "one of the arguments --video_path --input_dir --meta_path is required"),
        ({"input_dir": "clips", "save_path": "a.npz"}, "--save_path a.npz: goes with --video_path only"),
        ({"video_path": "a.mp4", "save_meta_path": "m.json"}, "--save_meta_path m.json: goes with --input_dir only"),
        ({"video_path": "a.mp4", "save_path": "a.txt"}, "--save_path a.txt: must end in .npz or .pt or .pth"),
        ({"video_path": "a.mp4", "max_gap": -1}, "--max_gap -1: must be 0 to 1000000"),
        ({"input_dir": "nowhere"}, "--input_dir nowhere: no such folder"),
    ],
)
def test_bad_flags_of_the_extractors_are_named(flags, message, capsys):
    assert run_script("extract_face_info", **flags) == 2
    assert message in capsys.readouterr().err
