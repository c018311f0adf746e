"""What trainings start from: a tiny model, prepared clips, and the configuration that names both."""

import pytest

from tests import tiny
from tests.clips import write_dataset
from tests.runs import write_config


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return tiny.write_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def meta_path(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), num_clips=3)


@pytest.fixture
def config_path(tmp_path, model_dir, meta_path):
    return write_config(tmp_path, model_dir, meta_path)
