"""`vexpress person` on drawn people: from a video to an adapter that `vexpress generate` takes."""

import json
import os

import pytest
import safetensors.torch

from tests import tiny
from tests.runs import ROOT, forget_run
from vexpress.cli import person
from vexpress.cli.main import main as vexpress
from vexpress.data.formats import ClipRecord, load_metadata
from vexpress.errors import InputError


def clip(name: str) -> ClipRecord:
    return ClipRecord(ROOT / name, ROOT / name, ROOT / name)


@pytest.mark.parametrize(("num_own", "num_prior", "share"), [(3, 300, 0.25), (3, 1, 0.25), (5, 64, 0.5), (2, 0, 0.25)])
def test_others_have_their_share_of_an_epoch(num_own, num_prior, share):
    own, prior = ([clip(f"{kind}{i}") for i in range(n)] for kind, n in (("own", num_own), ("prior", num_prior)))
    mixed = person.mix_clips(own, prior, share)
    taken = [record for record in mixed if record in prior]
    assert len(set(taken)) == len(taken) <= person.MOST_PRIOR_CLIPS
    assert set(own) <= set(mixed)
    counts = [mixed.count(record) for record in own]
    assert max(counts) - min(counts) <= 1
    if num_prior > 1:
        assert len(taken) / len(mixed) == pytest.approx(share, abs=0.02)


def test_a_folder_is_of_one_video(tmp_path):
    for name in ("anna.mp4", "ben.mp4"):
        (tmp_path / name).write_bytes(b"")
    folder = tmp_path / "out" / "source"
    folder.mkdir(parents=True)
    for _ in range(2):
        person.link_source(tmp_path / "anna.mp4", folder)
    assert (folder / "anna.mp4").resolve() == tmp_path / "anna.mp4"
    with pytest.raises(InputError, match="is of another video .anna.mp4.") as caught:
        person.link_source(tmp_path / "ben.mp4", folder)
    assert caught.value.field == "output_dir"


def run(*arguments: str, monkeypatch) -> int:
    forget_run()
    monkeypatch.setattr("sys.argv", ["vexpress", *map(str, arguments)])
    return vexpress()


def test_dry_run_writes_a_configuration_that_train_takes(tmp_path, monkeypatch, capsys):
    model_dir = tiny.write_model_dir(tmp_path / "model")
    (tmp_path / "a.mp4").write_bytes(b"")
    common = (tmp_path / "a.mp4", "--model_dir", model_dir, "--output_dir", tmp_path / "out", "--config")
    common = ("person", *common, ROOT / "training_configs" / "person.yaml", "--dry_run", "--set", "lora.rank=2")
    assert run(*common, monkeypatch=monkeypatch) == 0
    planned = capsys.readouterr().out
    assert "lora:\n  rank: 2" in planned and "GiB per process" in planned
    assert run("train", "--config", tmp_path / "out" / "config.yaml", "--dry_run", monkeypatch=monkeypatch) == 0
    assert run(*common, "--set", "data.train_width=64", monkeypatch=monkeypatch) == 2
    assert "data.train_width=64: prepared clips are square" in capsys.readouterr().err
    assert run("person", tmp_path / "none.mp4", *common[2:], monkeypatch=monkeypatch) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--prior_meta_path": "none.json"}, "--prior_meta_path: metadata none.json: cannot be read"),
        ({"--prior_meta_path": "empty.json"}, "--prior_meta_path empty.json: holds no clips"),
        ({"--prior_share": 0.5}, "--prior_share 0.5: has no effect without --prior_meta_path"),
        ({"video": "a.txt"}, "video=a.txt: must end in .mp4"),
        ({"video": ".a.mp4"}, "video=.a.mp4: must end in .mp4"),
        ({"--output_dir": "${b}"}, "/${b}: a configuration cannot hold"),
        ({"--output_dir": os.fsdecode(b"b\xff")}, "a configuration cannot hold"),
        ({"--model_dir": "model${b}"}, "/model${b}: a configuration cannot hold"),
    ],
)
def test_mistakes_are_found_at_once(tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    tiny.write_model_dir(tmp_path / changes.get("--model_dir", "model"))
    for name in ("a.mp4", ".a.mp4", "a.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty.json").write_text("[]")
    before = set(tmp_path.iterdir())
    flags = {"--model_dir": "model", "--output_dir": "out", "--config": ROOT / "training_configs" / "person.yaml"}
    flags |= {name: value for name, value in changes.items() if name != "video"}
    words = [word for flag in flags.items() for word in flag]
    assert run("person", changes.get("video", "a.mp4"), *words, monkeypatch=monkeypatch) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["config.yaml", "metadata.json"])
def test_files_of_others_are_never_replaced(tmp_path, monkeypatch, capsys, name):
    model_dir = tiny.write_model_dir(tmp_path / "model")
    (tmp_path / "a.mp4").write_bytes(b"")
    out = tmp_path / "out"
    out.mkdir()
    base = f"base: {ROOT / 'training_configs' / 'person.yaml'}\n"
    (out / "config.yaml").write_text(base)
    if name == "metadata.json":
        (out / "config.yaml").rename(out / "mine.yaml")
        (out / name).write_text('[{"video": "b.mp4", "face_info": "b.npz", "audio_embeds": "b.npz"}]')
    kept = (out / name).read_text()
    common = ("person", tmp_path / "a.mp4", "--model_dir", model_dir, "--output_dir", out, "--dry_run")
    for flags in (
        ("--config", next(out.glob("*.yaml"))),
        ("--config", ROOT / "training_configs" / "person.yaml", "--prior_meta_path", out / "metadata.json"),
        ("--config", ROOT / "training_configs" / "person.yaml"),
    ):
        assert run(*common, *flags, monkeypatch=monkeypatch) == 2
        error = capsys.readouterr().err
        assert "--output_dir" in error or f"metadata {out / 'metadata.json'}: cannot be read" in error
        assert (out / name).read_text() == kept


@pytest.mark.long
def test_a_video_becomes_an_adapter(tmp_path, monkeypatch, capsys):
    pack = ROOT / "vexpress" / "demo_pack"
    (row, *_) = json.loads((pack / "heldout" / "metadata.json").read_text())
    size = json.loads((pack / "inference_defaults.json").read_text())["image_width"]
    out = tmp_path / "out"
    settings = {
        "data.train_width": size,
        "data.train_height": size,
        "data.num_frames": 4,
        "data.reference_margin": 5,
        "solver.max_train_steps": 2,
        "solver.gradient_checkpointing": "false",
        "solver.mixed_precision": "no",
        "data.num_workers": 0,
        "tracker": "null",
        "lora.rank": 2,
        "output_dir": tmp_path / "elsewhere",
    }
    command = ["person", pack / "heldout" / row["video"], "--model_dir", pack, "--output_dir", out]
    command += ["--config", ROOT / "training_configs" / "person.yaml", "--min_resolution=32", "--min_face_px=16"]
    command += ["--min_clip_seconds=1", "--prior_meta_path", pack / "heldout" / "metadata.json"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert run(*command, monkeypatch=monkeypatch) == 0, capsys.readouterr().err
    assert len(load_metadata(out / "metadata.json")) > 10  # the person's, and the pack's
    adapter = tmp_path / "elsewhere" / "export" / "adapter.safetensors"
    assert f"--lora {adapter}" in capsys.readouterr().out
    assert any(tensor.any() for key, tensor in safetensors.torch.load_file(adapter).items() if "lora_B" in key)
    assert run(*command, monkeypatch=monkeypatch) == 0  # all is there
    command = ["generate", "--lora", f"{adapter}:0.5", "--output_path", tmp_path / "a.mp4", "--model_dir", pack]
    assert run(*command, "--num_inference_steps=1", monkeypatch=monkeypatch) == 0
    assert (tmp_path / "a.mp4").exists()
