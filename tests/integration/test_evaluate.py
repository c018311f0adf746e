"""The evaluation from files to a report, with answers that are known."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.evaluate import METERS
from tests import tiny
from tests.clips import write_dataset
from tests.face_models import build_face_models
from tests.unit.evaluation import talkers
from vexpress.cli import evaluate as program
from vexpress.cli.program import run_program
from vexpress.errors import InputError
from vexpress.evaluation.clips import Pair, pair_folders
from vexpress.evaluation.evaluate import evaluate, find_networks, load_networks
from vexpress.evaluation.measure import Networks
from vexpress.evaluation.report import Report
from vexpress.evaluation.settings import Settings
from vexpress.media.audio import Audio, load_audio
from vexpress.media.video import read_frames, write_video

SETTINGS = Settings(max_seconds=1.6, num_resamples=50, num_distance_resamples=5)
NUM_FRAMES = 40
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Networks:
    return talkers.build_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def real_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    for seed in range(4):
        talkers.write_talker(folder / f"clip_{seed}.mp4", seed, NUM_FRAMES)
    return folder


def compare(generated_dir: Path, real_dir: Path, networks: Networks, output_dir: Path, **options) -> Report:
    pairs, problems = pair_folders(generated_dir, real_dir)
    output_dir.mkdir(exist_ok=True)
    return evaluate(pairs, networks, SETTINGS, output_dir, "a test", problems=problems, **options)


def value(report: Report, row: str, metric: str) -> float:
    [found] = [r for r in report.rows if r.key == row]
    return found.estimates[metric].value


def changed(real_dir: Path, folder: Path, change, num_frames: int = NUM_FRAMES) -> Path:
    """Writes all clips with their frames changed."""
    folder.mkdir()
    for path in sorted(real_dir.glob("*.mp4")):
        frames = [change(frame) for _, frame in read_frames(path)][:num_frames]
        write_video(folder / path.name, frames, talkers.FPS, load_audio(path), crf=8)
    return folder


# ---- known answers -------------------------------------------------------------------------------------------------


def test_identical_videos(real_dir, networks, tmp_path):
    report = compare(real_dir, real_dir, networks, tmp_path / "report")
    for metric in ("fid", "fvd", "kps_distance", "d_face_similarity"):
        assert value(report, "generated", metric) == pytest.approx(0, abs=1e-6), metric
    assert value(report, "generated", "psnr") == float("inf")
    assert value(report, "generated", "ssim") == pytest.approx(1)
    for metric in ("sync_c", "sync_d", "offset", "face_similarity"):
        assert value(report, "generated", metric) == value(report, "ground_truth", metric)
    assert value(report, "generated", "offset") == 0 and value(report, "generated", "in_sync") == 100
    assert value(report, "shuffled", "sync_d") > 2 * value(report, "generated", "sync_d")
    assert value(report, "halves", "fid") > 1 and value(report, "halves", "fvd") > 0
    assert report.problems == []

    text = (tmp_path / "report" / "report.md").read_text()
    for facts in networks.facts:
        assert facts.file in text and facts.sha256 in text and facts.resize in text
    for picture in ("clips.png", "sync.png"):
        assert f"]({picture})" in text
        assert cv2.imread(str(tmp_path / "report" / picture)).std() > 10
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["row"] for row in content["rows"]] == ["generated", "ground_truth", "shuffled", "halves"]
    assert content["rows"][0]["figures"]["psnr"]["value"] == "inf"
    assert len(content["clips"]) == 4


@pytest.mark.parametrize("shift", [3, -5])
def test_shifted_videos_are_found_to_be_shifted(real_dir, networks, tmp_path, shift):
    for seed in range(2):
        talkers.write_talker(tmp_path / "shifted" / f"clip_{seed}.mp4", seed, NUM_FRAMES, shift)
    pairs = [
        Pair(path.stem, path, real_dir / path.name, real_dir / path.name)
        for path in sorted((tmp_path / "shifted").iterdir())
    ]
    report = evaluate(pairs, networks, SETTINGS, tmp_path, "a test")
    assert value(report, "generated", "offset") == shift
    assert value(report, "ground_truth", "offset") == 0
    assert value(report, "generated", "in_sync") == 0


def test_the_more_a_video_is_changed_the_worse(real_dir, networks, tmp_path):
    only_pictures, two = Networks(networks.frames, networks.clips), tmp_path / "two"
    two.mkdir()
    for path in sorted(real_dir.iterdir())[:2]:
        shutil.copy(path, two)
    changes = {
        "blur": [lambda frame, s=s: cv2.GaussianBlur(frame, (0, 0), s) for s in (0.8, 1.6, 3.2)],
        "colour": [
            lambda frame, s=s: (frame * np.array([1, 1 - s, 1 - s / 2])).astype(np.uint8) for s in (0.1, 0.3, 0.6)
        ],
    }
    for name, steps in changes.items():
        reports = [
            compare(changed(two, tmp_path / f"{name}{i}", step, 12), two, only_pictures, tmp_path / f"r{name}{i}")
            for i, step in enumerate(steps)
        ]
        for metric, sign in (("fid", 1), ("psnr", -1), ("ssim", -1)):
            values = [sign * value(report, "generated", metric) for report in reports]
            assert values == sorted(values) and len(set(values)) == 3, (name, metric, values)


def test_a_head_elsewhere_is_far_from_its_keypoints(real_dir, networks, tmp_path):
    moved = changed(real_dir, tmp_path / "moved", lambda frame: np.roll(frame, 6, axis=1))
    report = compare(moved, real_dir, networks, tmp_path / "report")
    assert value(report, "generated", "kps_distance") == pytest.approx(6 * 512 / talkers.SIZE_PX, rel=0.05)
    assert value(report, "ground_truth", "kps_distance") == 0


def test_another_size_and_rate_is_the_same_video(real_dir, networks, tmp_path):
    (tmp_path / "larger").mkdir()
    for path in sorted(real_dir.iterdir())[:2]:
        larger = [cv2.resize(frame, (144, 144)) for _, frame in read_frames(path) for _ in range(2)]
        write_video(tmp_path / "larger" / path.name, larger, 2 * talkers.FPS, load_audio(path), crf=8)
    report = compare(tmp_path / "larger", real_dir, networks, tmp_path / "report")
    assert {problem.what for problem in report.problems} == {"all"}  # of the videos that have no partner
    assert value(report, "generated", "kps_distance") < 4
    assert value(report, "generated", "psnr") > 25
    assert value(report, "generated", "offset") == 0


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_bad_clips_are_listed_and_the_rest_is_measured(real_dir, networks, tmp_path):
    ours, real = tmp_path / "ours", tmp_path / "real"
    for folder in (ours, real):
        shutil.copytree(real_dir, folder)
    speech = talkers.make_speech(9, NUM_FRAMES)
    frames = talkers.make_frames(speech, NUM_FRAMES)
    sound, silence = (Audio(samples[None], talkers.RATE_HZ) for samples in (speech, 0 * speech))
    write_video(real / "silent.mp4", frames, talkers.FPS, silence)
    write_video(ours / "silent.mp4", frames, talkers.FPS, silence)
    write_video(real / "faceless.mp4", frames, talkers.FPS, sound)
    write_video(ours / "faceless.mp4", frames * 0 + 99, talkers.FPS, sound)
    write_video(real / "short.mp4", frames, talkers.FPS, sound)
    write_video(ours / "short.mp4", frames[:10], talkers.FPS, sound)
    write_video(real / "mute.mp4", frames, talkers.FPS, sound)
    write_video(ours / "mute.mp4", frames, talkers.FPS)
    write_video(real / "corrupt.mp4", frames, talkers.FPS, sound)
    (ours / "corrupt.mp4").write_bytes((real / "corrupt.mp4").read_bytes()[:700])
    write_video(real / "alone.mp4", frames, talkers.FPS, sound)
    report = compare(ours, real, networks, tmp_path / "report")

    problems = {(problem.clip, problem.what): problem.reason for problem in report.problems}
    assert "is silent" in problems["silent", "sync (generated)"]
    assert "0 of 40 frames" in problems["faceless", "faces (generated)"]
    assert "no frame" in problems["faceless", "FaceSim"]
    assert "no frame" in problems["faceless", "KpsDis (generated)"]
    assert "0 of 40 frames" in problems["faceless", "sync (generated)"]
    assert "the first 10" in problems["short", "length"]
    assert "a clip needs 16" in problems["short", "FVD (generated)"]
    assert "video has none" in problems["mute", "sound (generated)"]
    assert "cannot" in problems["corrupt", "all"] or "cut off" in problems["corrupt", "all"]
    assert "no generated video" in problems["alone", "all"]
    assert all("\n" not in reason for reason in problems.values())

    [row] = [row for row in report.rows if row.key == "generated"]
    assert row.num_clips == 8
    counts = {key: estimate.num_clips for key, estimate in row.estimates.items()}
    assert (counts["fid"], counts["fvd"], counts["sync_c"], counts["face_similarity"]) == (8, 7, 6, 7)
    text = (tmp_path / "report" / "report.md").read_text()
    for clip, _ in problems:
        assert f"- {clip}, " in text
    assert "(6)" in text and "2 left out" in text


def test_one_clip_has_no_distribution_and_the_rest_is_reported(real_dir, networks, tmp_path):
    path = real_dir / "clip_0.mp4"
    report = evaluate([Pair("clip_0", path, path, path)], networks, SETTINGS, tmp_path, "a test")
    reasons = [(problem.clip, problem.what, problem.reason) for problem in report.problems]
    for metric in ("FID", "FVD"):
        assert ("generated", metric, "one clip is no distribution; give two or more") in reasons
        assert any(what == metric and "has no halves" in reason for _, what, reason in reasons)
    assert any(what == "sync" and "no other to take the sound of" in reason for _, what, reason in reasons)
    [row] = [row for row in report.rows if row.key == "generated"]
    assert "fid" not in row.estimates and row.estimates["sync_c"].low is None
    assert "fid" in report.rows[1].estimates  # of the truth against itself
    assert (tmp_path / "report.md").is_file()


def test_nothing_to_measure_is_an_error(networks, tmp_path):
    for folder in ("ours", "real"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="none of 1 clips"):
        compare(tmp_path / "ours", tmp_path / "real", networks, tmp_path / "report")


# ---- drawn faces with labels ---------------------------------------------------------------------------------------


def run(*arguments) -> int:
    """Runs the program as scripts/evaluate.py does."""
    return run_program(lambda: program.main([str(argument) for argument in arguments], METERS))


def test_mouths_follow_their_labels_and_groups_get_rows(tmp_path, capsys):
    meta_path = talkers.write_drawn(tmp_path / "data", 4)
    fid, _ = talkers.write_feature_networks(tmp_path / "networks")
    assert run(
        "--meta_path", meta_path, "--generated_dir", tmp_path / "data", "--output_dir", tmp_path / "report",
        "--fid_network", fid, "--group_by", "language", "--num_distance_resamples", 3, "--device", "cpu",
    ) == 0  # fmt: skip
    output = capsys.readouterr().out
    assert "aperture r" in output and "language sv" in output and "report.md: 4 clips" in output
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    generated, truth, shuffled, _ = (row["figures"] for row in content["rows"])
    assert generated["aperture_r"]["value"] > 0.95 and generated["width_r"]["value"] > 0.9
    assert generated["aperture_r"] == truth["aperture_r"]
    assert shuffled["aperture_r"]["value"] < 0.6
    assert [(row["row"], row["group"]) for row in content["groups"]] == [
        (row, ["language", value]) for value in ("fi", "sv") for row in ("generated", "ground_truth")
    ]
    assert all(row["num_clips"] == 2 for row in content["groups"])
    assert content["not_measured"].keys() == {"FVD", "FaceSim, dFaceSim, KpsDis", "Sync-C, Sync-D"}
    assert cv2.imread(str(tmp_path / "report" / "mouth.png")).std() > 10


# ---- the program ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    folder = tiny.write_model_dir(tmp_path_factory.mktemp("model"))
    build_face_models(folder / "insightface_models")
    talkers.write_feature_networks(folder / "evaluation")
    return folder


@pytest.fixture
def generation(tmp_path, model_dir) -> dict[str, object]:
    """Flags of a run that generates two videos of 4 frames."""
    return {
        "--meta_path": write_dataset(tmp_path / "data", 2, num_frames=4, size=64),
        "--model_dir": model_dir,
        "--fid_network": model_dir / "evaluation" / "fid.pt",
        "--output_dir": tmp_path / "report",
        "--image_width": 64,
        "--image_height": 64,
        "--num_inference_steps": 1,
        "--context_frames": 4,
        "--context_overlap": 1,
        "--num_distance_resamples": 2,
        "--device": "cpu",
    }


def run_flags(flags: dict[str, object], *more) -> int:
    return run(*(part for pair in flags.items() for part in pair), *more)


def test_missing_videos_are_generated_once(generation, capsys):
    assert run_flags(generation) == 0
    folder = generation["--output_dir"] / "generated"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*.mp4")}
    assert sorted(path.name for path in made) == ["clip_0.mp4", "clip_1.mp4"]
    assert all(len(list(read_frames(path))) == 4 for path in made)
    content = json.loads((generation["--output_dir"] / "report.json").read_text())
    assert 0 < content["rows"][0]["figures"]["fid"]["value"] < float("inf")
    assert "insightface_models" in {network["file"] for network in content["networks"]}

    next(iter(made)).unlink()
    assert run_flags(generation) == 0
    kept = [path for path in made if path.stat().st_mtime_ns == made[path]]
    assert len(kept) == 1 and all(path.is_file() for path in made)

    def refused(message: str, *more, **changes) -> bool:
        capsys.readouterr()
        flags = {**generation, **{f"--{name}": value for name, value in changes.items()}}
        return run_flags(flags, *more) == 2 and message in capsys.readouterr().err

    assert refused("made with other num_inference_steps", num_inference_steps=2)
    record = folder / "generation.json"
    kept = record.read_text()
    record.write_text(json.dumps(json.loads(kept) | {"adapters": ["a.safetensors"]}))
    assert refused("made with other adapters")
    record.unlink()
    assert refused("holds videos and no generation.json")
    facts = json.loads(kept)
    del facts["model_sha256"]
    record.write_text(json.dumps(facts))
    assert run_flags(generation) == 0  # of an earlier version

    record.write_text(kept)
    model_dir = generation["--model_dir"]
    for name in ("v-express/v_kps_guider.safetensors", "v-express/audio_projection.json", "sd-vae-ft-mse/config.json"):
        before = (model_dir / name).read_bytes()
        (model_dir / name).write_bytes(before + b" ")
        assert refused("made with other model_sha256")
        (model_dir / name).write_bytes(before)
    assert run_flags(generation) == 0


def test_processes_share_the_clips_and_not_their_windows(generation, tmp_path):
    generation |= {"--meta_path": write_dataset(tmp_path / "three", 3, num_frames=4, size=64), "--context_frames": 3}
    assert run_flags(generation) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "scripts" / "evaluate.py")]
    command += [str(part) for pair in {**generation, "--output_dir": tmp_path / "two"}.items() for part in pair]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    for path in (generation["--output_dir"] / "generated").glob("*.mp4"):
        assert (tmp_path / "two" / "generated" / path.name).read_bytes() == path.read_bytes()


def test_real_clips_are_not_taken_for_generated_ones(generation, capsys):
    folder = generation["--meta_path"].parent
    (folder / "generation.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run_flags({**generation, "--generated_dir": folder}) == 2
    assert f"--generated_dir {folder}: is the folder of the real clips" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not generation["--output_dir"].exists()


def test_a_model_that_cannot_be_loaded_leaves_nothing(generation, tmp_path, capsys):
    damaged = shutil.copytree(generation["--model_dir"], tmp_path / "damaged")
    (damaged / "v-express" / "v_kps_guider.safetensors").write_bytes(b"x")
    assert run_flags({**generation, "--model_dir": damaged}) == 2
    assert not generation["--output_dir"].exists()


def test_a_clip_that_cannot_be_generated_is_listed(generation):
    (generation["--meta_path"].parent / "clip_0_face_info.npz").unlink()
    assert run_flags(generation) == 0
    content = json.loads((generation["--output_dir"] / "report.json").read_text())
    reasons = [problem["reason"] for problem in content["problems"] if problem["clip"] == "clip_0"]
    assert len(reasons) == 1 and "face_info file is missing" in reasons[0]
    assert [clip["name"] for clip in content["clips"]] == ["clip_1"]


def test_a_detector_alone_is_enough_for_keypoints_and_sync(model_dir, tmp_path):
    shutil.copy(model_dir / "insightface_models" / "det_test.onnx", tmp_path)
    found = load_networks(find_networks(None, insightface_model_path=str(tmp_path)), "cpu")
    assert found.facts[0].kind == "detection" and len(found.facts[0].sha256) == 12
    assert "no recognition model" in found.missing["FaceSim, dFaceSim"]
    assert found.missing["Sync-C, Sync-D"] == "give `syncnet_path`"
    assert find_networks(model_dir)["fid_network"] == model_dir / "evaluation" / "fid.pt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--meta_path": None}, "either --real_dir or --meta_path"),
        ({"--model_dir": None}, "give --model_dir"),
        ({"--model_dir": "nowhere"}, "no such folder"),
        ({"--group_by": "age"}, "no row has this column"),
        ({"--num_frames": 3}, "unrecognized arguments: --num_frames"),
        ({"--max_seconds": 0}, "--max_seconds 0.0: must be"),
        ({"--fid_network": "none.pt"}, "--fid_network none.pt: no such file"),
        ({"--syncnet_path": "none.model"}, "--syncnet_path none.model: no such file"),
        ({"--num_inference_steps": 0}, "--num_inference_steps 0: must be"),
        ({"--guidance_scale": 1, "--guidance_interval": 2}, "--guidance_interval 2: has no effect with --guidance_"),
        ({"--crop_scale": 2}, "unrecognized arguments: --crop_scale"),
        ({"--meta_path": None, "--real_dir": ".", "--generated_dir": "."}, "which needs --meta_path"),
        ({"--model_dir": None, "--generated_dir": ".", "--lora": "a.safetensors"}, "--lora says how to generate"),
    ],
)
def test_wrong_flags_are_one_clear_line(generation, changes, message, capsys):
    flags = {flag: value for flag, value in {**generation, **changes}.items() if value is not None}
    if "--model_dir" in changes and changes["--model_dir"] is None:
        flags = {flag: value for flag, value in flags.items() if flag in ("--meta_path", "--output_dir", *changes)}
    assert run_flags(flags) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0]
    assert not generation["--output_dir"].exists()
