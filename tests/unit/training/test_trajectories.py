"""What the teacher has made is made once, whatever happens in between, and anew where anything that counts differs."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from tests.clips import write_dataset
from vexpress.data.config import DataConfig
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.errors import InputError
from vexpress.training.config import DistillConfig, InitConfig, TrainConfig
from vexpress.training.trajectories import TaughtDataset, add_trajectories


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("distillation")
    model, meta = tiny.write_model_dir(folder / "model"), write_dataset(folder / "data", num_clips=2)
    return TrainConfig(
        train_stage="stage_4",
        init=InitConfig(source="stage", path=str(model)),
        vae_model_path=str(model / "sd-vae-ft-mse"),
        data=DataConfig(meta_paths=[str(meta)], train_width=64, train_height=64, num_frames=2),
        distill=DistillConfig(num_trajectories=5, context_overlap=1, trajectories_dir=str(folder / "trajectories")),
    )


@pytest.fixture(scope="module")
def clips(config) -> TalkingFaceDataset:
    return TalkingFaceDataset(config.data, config.seed, audio_dim=24, only_reference=True)


def fake_teacher(made: list[int]):
    def sampled(sample):
        made.append(sample["number"])
        return {"noise": torch.full((4, 2, 8, 8), float(sample["number"])), "latents": torch.ones(4, 2, 8, 8)}

    return lambda: sampled


def test_each_is_made_once_and_processes_share_them(config, clips, tmp_path):
    dataset, made = TaughtDataset(clips, tmp_path / "new", 5), []
    dataset.complete(fake_teacher(made), rank=1, num_processes=2)
    assert made == [1, 3]
    (tmp_path / "new" / "00000003.safetensors").unlink()  # as if killed before it
    dataset.complete(fake_teacher(made))
    assert made == [1, 3, 0, 2, 3, 4]
    dataset.complete(lambda: pytest.fail("a teacher is loaded for nothing"))

    sample = dataset[12]
    assert sample["number"] == 12
    assert sample["noise"][0, 0, 0, 0] == 2  # 12 modulo 5
    assert torch.equal(sample["kps_images"], clips[2]["kps_images"])
    assert "pixel_values" not in sample and "reference_image" in sample
    (tmp_path / "new" / "00000002.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="00000002.safetensors cannot be read .*delete it"):
        dataset[12]


def test_the_folder_is_named_by_all_that_counts(config, clips):
    def folder(changed: TrainConfig) -> str:
        return add_trajectories(clips, changed, torch.float32).folder.name

    own = folder(config)
    assert folder(replace(config, output_dir="elsewhere")) == own
    assert folder(replace(config, distill=replace(config.distill, num_trajectories=9, num_steps=1))) == own
    others = [
        replace(config, seed=1),
        replace(config, distill=replace(config.distill, teacher_sampling={"guidance_scale": 2.0})),
        replace(config, vae_model_path="nowhere"),
    ]
    assert len({own, *map(folder, others)}) == 4
    assert add_trajectories(clips, config, torch.bfloat16).folder.name != own
