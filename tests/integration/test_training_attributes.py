"""Training the attribute projection: added to a model that has none, resumed exactly, carried on by the next stage."""

import json

import numpy as np
import pytest
import torch

from tests import tiny
from tests.clips import write_dataset
from tests.runs import assert_equal, exported, run, write_config
from vexpress.data.attributes import save_attributes
from vexpress.errors import InputError
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.weights import load_networks

NETWORK = "model.attribute_projection={dim: 16}"


@pytest.fixture
def config_path(tmp_path):
    meta_path = write_dataset(tmp_path / "data", num_clips=2)
    rows = json.loads(meta_path.read_text())
    labels = np.random.default_rng(0).uniform(0, 1, (400, 6)).astype(np.float32)
    save_attributes(meta_path.parent / "attributes.npz", labels)
    rows[0]["attributes"] = "attributes.npz"  # the other clip's are those of its landmarks
    meta_path.write_text(json.dumps(rows))
    return write_config(tmp_path, tiny.write_model_dir(tmp_path / "model"), meta_path)


def test_it_is_added_trained_resumed_exactly_and_carried_on(config_path, tmp_path):
    shared = (NETWORK, "train_stage=stage_2", "solver.optimizer=muon", "solver.ema_decay=0.9", "uncond_ratio=0")
    run(config_path, *shared, f"output_dir={tmp_path / 'whole'}", "solver.max_train_steps=4")
    for num_steps in (2, 4):
        run(config_path, *shared, f"output_dir={tmp_path / 'parts'}", f"solver.max_train_steps={num_steps}")
    assert_equal(exported(tmp_path / "whole"), exported(tmp_path / "parts"))

    export = tmp_path / "whole" / "export"
    first = load_networks(ModelPaths.from_model_dir(export))["attribute_projection"].state_dict()
    run(config_path, f"init.path={export}", "solver.learning_rate=0.01", "solver.max_train_steps=1")
    second = load_networks(ModelPaths.from_model_dir(tmp_path / "run" / "export"))["attribute_projection"].state_dict()
    assert first.keys() == second.keys()
    assert all(not torch.equal(first[name], second[name]) for name in ("unknown", "layers.0.0.weight"))


def test_a_model_without_it_stays_without(config_path, tmp_path):
    run(config_path, "solver.max_train_steps=1")
    assert not list((tmp_path / "run" / "export").glob(f"{LAYOUT['attribute_projection_path']}*"))


@pytest.mark.parametrize("sizes", ["{dim: 0.5}", "{dim: 100000000}", "{width: 3}", "{dim: 16, output_dim: 7}"])
def test_sizes_that_make_no_network_are_one_line(config_path, sizes):
    with pytest.raises(InputError, match="attribute_projection") as caught:
        run(config_path, f"model.attribute_projection={sizes}")
    assert "\n" not in str(caught.value)
