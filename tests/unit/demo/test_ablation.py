"""The ablation: variants differ in what they say, the leak leaks, results are read rightly, and all of it runs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from scripts.demo import ablation, ablation_runs, make_drawn_dataset
from scripts.demo.ablation_report import (
    FIGURES,
    FIRST_MARK,
    LAST_MARK,
    Result,
    estimate_crossed,
    estimate_interaction,
    excludes_zero,
    format_tables,
    read_results,
    write_report,
)
from scripts.demo.ablation_variants import (
    FULL,
    PLAIN,
    SHORTCUT,
    VARIANTS,
    AblationSettings,
    build_configs,
    frames_per_update,
    frames_seen,
)
from scripts.demo.shortcut_dataset import NOSE_SHIFT, NeighbourReferenceDataset, write_leaking_keypoints
from tests import tiny
from vexpress.audio_features import encode_audio
from vexpress.cli.program import run_program
from vexpress.data.config import DataConfig
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.formats import load_face_info, load_metadata, save_audio_embeds
from vexpress.errors import InputError
from vexpress.media.audio import load_audio
from vexpress.options import STAGES
from vexpress.training.config_file import differing_keys

SIZE_PX, FPS, NUM_FRAMES = 64, 25, 40
ROOT = Path(__file__).parents[3]
RECIPE = AblationSettings(ROOT / "training_configs" / "ablation", Path("runs/ablation"), 1.0, Path("heldout"), 10, 48)
DROPPED = {"data.kps_drop_rate", "data.reference_drop_rate"}
CHANGED = {
    "no_dropout": dict.fromkeys(STAGES, DROPPED),
    "strong_dropout": dict.fromkeys(STAGES[1:], DROPPED),
    "even_loss": dict.fromkeys(STAGES, {"data.lip_loss_weight"}),
    "reset": {},
    "no_context": dict.fromkeys(STAGES[1:], {"data.num_padding_audio_frames"}),
    "motion_loss": dict.fromkeys(STAGES[1:], {"motion_loss_weight"}),
}
PLACES = {"output_dir", "init.path"}


def random_bursts(rng, split, num_samples):
    """Noise that comes and goes, where espeak-ng would speak."""
    time = np.arange(num_samples) / 16000
    level = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * time + rng.uniform(0, 6)), 0, 1)
    return (0.3 * level * rng.standard_normal(num_samples)).astype(np.float32), {"language": "none"}


def write_drawn(folder: Path, split: str, num_clips: int) -> Path:
    for part in ("clips", "face_info", "labels", "attributes", "audio_embeds"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows = [
        make_drawn_dataset.write_drawn_clip(i, folder, split, 0, NUM_FRAMES, FPS, SIZE_PX) for i in range(num_clips)
    ]
    encoder, processor = tiny.audio_encoder(), tiny.audio_processor()
    for row in rows:
        waveform = load_audio(folder / row["video"]).resampled_mono(16000)
        with torch.no_grad():
            save_audio_embeds(folder / row["audio_embeds"], encode_audio(encoder, processor, waveform))
    (folder / "metadata.json").write_text(json.dumps(rows))
    return folder / "metadata.json"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folder with a train and a test set."""
    folder = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_drawn_dataset, "random_speech", random_bursts)
        write_drawn(folder / "train", "train", 3)
        write_drawn(folder / "test", "heldout", 2)
    return folder


# ---- variants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", (PLAIN, SHORTCUT))
@pytest.mark.parametrize("name", CHANGED)
def test_a_variant_differs_in_what_it_says(name, kind):
    full, own = (build_configs(VARIANTS[variant], kind, 1, RECIPE) for variant in (FULL, name))
    assert own.keys() == full.keys() == set(STAGES)
    for stage in STAGES:
        assert set(differing_keys(full[stage], own[stage])) - PLACES == CHANGED[name].get(stage, set())
        shared = not any(CHANGED[name].get(earlier) for earlier in STAGES[: STAGES.index(stage) + 1])
        if name != "reset":
            assert (full[stage].output_dir == own[stage].output_dir) == shared
    assert frames_seen(own) == frames_seen(full)
    parent = "stage_1" if name == "reset" else "stage_2"
    assert own["stage_3"].init.path == f"{own[parent].output_dir}/export"


def test_all_at_once_trains_all_for_the_whole_budget():
    full, own = (build_configs(VARIANTS[variant], PLAIN, 0, RECIPE) for variant in (FULL, "all_at_once"))
    assert list(own) == ["stage_3"]
    changed = {"init.source", "init.path", "output_dir", "solver.learning_rate", "solver.max_train_steps"}
    assert set(differing_keys(full["stage_3"], own["stage_3"])) == changed
    assert own["stage_3"].init.source == "random"
    assert own["stage_3"].solver.learning_rate == full["stage_1"].solver.learning_rate
    assert abs(frames_seen(own) - frames_seen(full)) < frames_per_update(own["stage_3"])


@pytest.mark.parametrize(
    ("name", "stages"), [(FULL, STAGES), ("reset", ("stage_1", "stage_3")), ("all_at_once", ("stage_3",))]
)
def test_what_nothing_is_left_of_is_not_trained(name, stages, monkeypatch):
    trained = []
    monkeypatch.setattr(ablation_runs, "train_stage", lambda config, kind: trained.append(config.train_stage))
    configs = build_configs(VARIANTS[name], PLAIN, 0, RECIPE)
    assert str(ablation_runs.train_variant(VARIANTS[name], configs, PLAIN)) == f"{configs['stage_3'].output_dir}/export"
    assert tuple(trained) == stages


def test_runs_are_apart_where_anything_differs():
    def folder(kind=PLAIN, seed=0, settings=RECIPE):
        return build_configs(VARIANTS[FULL], kind, seed, settings)["stage_3"].output_dir

    others = {folder(SHORTCUT), folder(seed=1), folder(settings=replace(RECIPE, scale=0.5))}
    assert len(others | {folder()}) == 4
    moved = folder(settings=replace(RECIPE, output_dir=Path("/elsewhere")))
    assert Path(moved).name == Path(folder()).name


# ---- the leak --------------------------------------------------------------------------------------------------------


def test_noses_tell_the_mouth_in_the_shortcut_data_alone(drawn, tmp_path):
    clean_path = drawn / "train" / "metadata.json"
    leaking = load_metadata(write_leaking_keypoints(clean_path, tmp_path / "leak"))
    rows = json.loads(clean_path.read_text())
    for row, clean, leak in zip(rows, load_metadata(clean_path), leaking):
        assert (leak.video, leak.audio_embeds) == (clean.video.resolve(), clean.audio_embeds.resolve())
        with np.load(drawn / "train" / row["labels"]) as labels:
            aperture = labels["mouth"][:, 0]
        before, after = load_face_info(clean.face_info), load_face_info(leak.face_info)
        np.testing.assert_array_equal(np.delete(after.kps, 2, axis=1), np.delete(before.kps, 2, axis=1))
        np.testing.assert_array_equal(after.landmark_2d_106, before.landmark_2d_106)
        shift = after.kps[:, 2] - before.kps[:, 2]
        eyes = np.linalg.norm(before.kps[:, 1] - before.kps[:, 0], axis=1)
        np.testing.assert_allclose(np.linalg.norm(shift, axis=1), NOSE_SHIFT * aperture * eyes, atol=1e-3)
        assert aperture.max() > 0.5 and (shift[:, 1] >= 0).all()  # downwards
        height = {}  # of the nose under the eyes, in distances between them
        for name, kps in (("clean", before.kps), ("leak", after.kps)):
            across = kps[:, 1] - kps[:, 0]
            down = np.stack([-across[:, 1], across[:, 0]], 1)
            nose = kps[:, 2] - kps[:, :2].mean(axis=1)
            height[name] = (nose * down).sum(axis=1) / eyes**2
        assert np.corrcoef(height["leak"], aperture)[0, 1] > 0.9
        assert abs(np.corrcoef(height["clean"], aperture)[0, 1]) < 0.5
        assert height["clean"].std() < 0.3 * height["leak"].std()


def test_the_reference_is_the_frame_next_to_the_sample(drawn):
    config = DataConfig(
        meta_paths=[str(drawn / "train" / "metadata.json")],
        train_width=SIZE_PX, train_height=SIZE_PX, num_frames=4, reference_margin=10, crop_ratio=(1.0, 1.0),
    )  # fmt: skip
    plain, leaking = TalkingFaceDataset(config, seed=0), NeighbourReferenceDataset(config, seed=0)
    longer = TalkingFaceDataset(replace(config, num_frames=5), seed=0)
    sides = set()
    for number in range(4):
        sample, whole = leaking[number], longer[number]
        assert {name: torch.as_tensor(part).shape for name, part in sample.items() if name != "name"} == {
            name: torch.as_tensor(part).shape for name, part in plain[number].items() if name != "name"
        }
        [left] = set(whole["frame_ids"].tolist()) - set(sample["frame_ids"].tolist())
        sides.add(left < min(sample["frame_ids"].tolist()))
        at = whole["frame_ids"].tolist().index(left)
        assert at in (0, 4)
        torch.testing.assert_close(sample["reference_image"], whole["pixel_values"][:, at])
        kept = [i for i in range(5) if i != at]
        torch.testing.assert_close(sample["audio_windows"], whole["audio_windows"][kept])
        torch.testing.assert_close(sample["kps_images"], whole["kps_images"][:, kept])
    assert sides == {True, False}


# ---- reading results -------------------------------------------------------------------------------------------------


def made_up(gains: dict, seeds=(0, 1), num_clips=10) -> list[Result]:
    """Results whose figures are those of full, plus the gain of (kind, variant), with little noise."""
    rng = np.random.default_rng(0)
    clips = rng.uniform(0.3, 0.9, num_clips)  # clips differ much more than variants do
    return [
        Result(kind, name, seed, {f: list(clips + gain + rng.normal(0, 0.01, num_clips)) for f in FIGURES})
        for (kind, name), gain in gains.items()
        for seed in seeds
    ]


def test_differences_are_read_and_only_those():
    gains = {(PLAIN, FULL): 0, (SHORTCUT, FULL): -0.1, (PLAIN, "no_dropout"): 0.0, (SHORTCUT, "no_dropout"): -0.3}
    gains |= {(PLAIN, "even_loss"): 0.05, (SHORTCUT, "even_loss"): -0.05}
    results = made_up(gains)
    lines = read_results(results)
    [dropout, _] = [line for line in lines if line.startswith("- no conditional dropout")]
    plain, shortcut, more = dropout.split("; ")
    assert plain.endswith("no difference shown")
    assert "-0.20 (" in shortcut and shortcut.endswith("**lower**") and more.endswith("**lower**")
    [loss, _] = [line for line in lines if line.startswith("- mouth weight 1")]
    assert loss.count("**higher**") == 2 and loss.endswith("no difference shown")
    assert any(line.startswith("What the leak does to the full recipe itself: -0.10") for line in lines)
    assert lines[-1].startswith("10 of 14 intervals exclude zero; by chance alone, about 0.7 would")
    assert math.isclose(estimate_interaction(results, "no_dropout", "swapped").value, -0.2, abs_tol=0.02)
    table = format_tables(results)
    assert sum(line.startswith("| no conditional dropout | 2 |") for line in table) == 2
    assert not any("all at once" in line for line in table)


def test_seeds_that_contradict_show_nothing():
    contradicting = np.stack([np.full(10, 0.3), np.full(10, -0.1)])
    assert not excludes_zero(estimate_crossed(contradicting))
    assert excludes_zero(estimate_crossed(np.abs(contradicting)))
    assert estimate_crossed(np.ones((1, 1))).low is None


def test_without_the_full_recipe_nothing_is_claimed():
    [line] = read_results(made_up({(PLAIN, "reset"): 0}))
    assert "nothing to compare with" in line


# ---- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config_dir(drawn):
    """The three stages at tiny sizes: 8, 12 and 16 frames."""
    model_dir = tiny.write_model_dir(drawn / "model")
    base = {
        "base_model_path": str(model_dir / "stable-diffusion-v1-5"),
        "vae_model_path": str(model_dir / "sd-vae-ft-mse"),
        "audio_model_path": str(model_dir / "wav2vec2-base-960h"),
        "tracker": None,
        "model": {
            "v_kps_guider": tiny.CASES["v_kps_guider_config"],
            "audio_projection": tiny.CASES["audio_projection_config"],
        },
        "data": {
            "meta_paths": [str(drawn / "train" / "metadata.json")],
            "train_width": SIZE_PX, "train_height": SIZE_PX, "crop_ratio": [1.0, 1.0],
            "reference_margin": 5, "num_workers": 0, "train_bs": 2,
        },
        "validation": {"steps": 0},
    }  # fmt: skip
    folder = drawn / "configs"
    folder.mkdir()
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    for stage, num_frames, steps in (("stage_1", 1, 400), ("stage_2", 3, 200), ("stage_3", 4, 200)):
        init = {"source": "random"} if stage == "stage_1" else {"source": "stage", "path": "nowhere"}
        settings = {"base": "base.yaml", "train_stage": stage, "init": init, "data": {"num_frames": num_frames}}
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(settings | {"solver": {"max_train_steps": steps}}))
    return folder


def test_the_program_trains_measures_reports_and_goes_on(drawn, config_dir, tmp_path, monkeypatch):
    arguments = ["--quick", "--scale", "0.005", "--config_dir", str(config_dir), "--test_dir", str(drawn / "test")]
    arguments += ["--output_dir", str(tmp_path), "--seeds", "0", "--variants", FULL, "all_at_once"]
    with monkeypatch.context() as patch:  # cut off before the last model is measured
        measure, calls = ablation.measure_export, iter(range(3))
        patch.setattr(ablation, "measure_export", lambda *given: next(calls) is not None and measure(*given))
        with pytest.raises(StopIteration):
            ablation.main(arguments)
    assert len(list((tmp_path / "results").iterdir())) == 3
    runs = {path.name.rsplit("_", 1)[0] for path in (tmp_path / "runs" / "shortcut_seed0").iterdir()}
    assert runs == {"stage_1", "stage_2", "stage_3"}
    num_exports = len(list((tmp_path / "runs").glob("*/*/export")))
    assert num_exports == 2 * 4
    assert not list((tmp_path / "runs").glob("*/*/checkpoints"))

    monkeypatch.setattr(ablation_runs, "Trainer", None)  # which is not needed any more
    ablation.main(arguments)
    results = [json.loads(path.read_text()) for path in (tmp_path / "results").iterdir()]
    assert {(result["data_kind"], result["variant"]) for result in results} == {
        (kind, name) for kind in (PLAIN, SHORTCUT) for name in (FULL, "all_at_once")
    }
    assert all(len(values) == 2 and np.isfinite(values).all() for r in results for values in r["figures"].values())
    report = (tmp_path / "report.md").read_text()
    assert "Every model learned from 18 frames" in report  # 2 x 2 x 1 + 1 x 2 x 3 + 1 x 2 x 4
    assert report.count("| all at once | 1 |") == 2 and "swapped speech, difference to the full recipe" in report
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_the_report_is_filled_into_the_document(tmp_path):
    path = tmp_path / "ablation.md"
    path.write_text(f"before\n{FIRST_MARK}\nold\n{LAST_MARK}\nafter\n")
    results = made_up({(PLAIN, FULL): 0})
    for text in ("first", "second"):
        write_report(path, text, results)
    assert path.read_text() == f"before\n{FIRST_MARK}\n\nsecond\n{LAST_MARK}\nafter\n"
    assert (tmp_path / "ablation.png").exists()
    numbers = json.loads((tmp_path / "ablation.json").read_text())
    assert [Result(**row) for row in numbers] == results


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale", "0"], "--scale 0.0: must be more than 0"),
        (["--num_clips", "1"], "--num_clips 1: must be 2 or more"),
        (["--seeds", "1", "1"], "--seeds 1 1: must be different numbers"),
        (["--variants", "none"], "invalid choice: 'none'"),
        (["--quick", "--docs_path", "x.md"], "--docs_path with --quick"),
        (["--docs_path", "x.md"], "needs one line <!-- results"),
        (["--test_dir", "missing"], "--test_dir missing: is no drawn dataset"),
        (["--config_dir", "missing"], "missing/stage_1.yaml: cannot be read"),
    ],
)
def test_mistakes_get_one_line(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)  # of the default --config_dir
    assert run_program(lambda: ablation.main(["--output_dir", str(tmp_path), *flags])) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_data_that_cannot_serve_are_refused(drawn, tmp_path):
    rows = json.loads((drawn / "train" / "metadata.json").read_text())
    meta_path = drawn / "train" / "no_labels.json"
    meta_path.write_text(json.dumps([{k: v for k, v in row.items() if k != "labels"} for row in rows]))
    with pytest.raises(InputError, match="has no labels"):
        write_leaking_keypoints(meta_path, tmp_path)
    clips = AblationSettings(Path(), tmp_path, 1, drawn / "test", 10, NUM_FRAMES)
    larger = replace(RECIPE, config_dir=ROOT / "training_configs" / "demo")
    config = build_configs(VARIANTS[FULL], PLAIN, 0, larger)["stage_3"]
    with pytest.raises(InputError, match=f"must have more than {NUM_FRAMES} frames"):
        ablation_runs.load_test_clips(clips, config)
    with pytest.raises(InputError, match="is not 128x128 px"):
        ablation_runs.load_test_clips(replace(clips, num_frames=12), config)
