"""The released layout: where each part of a model lies, and its configuration files."""

import pytest

from tests import tiny
from vexpress.errors import InputError
from vexpress.model_folder import LAYOUT, ModelPaths, read_config


@pytest.mark.parametrize("name", ["unet_config_path", "vae_path", "reference_net_path"])
def test_missing_parts_name_the_place_and_the_field(tmp_path, name):
    tiny.write_model_dir(tmp_path)
    place = tmp_path / LAYOUT[name]
    target = place if place.exists() else place.with_suffix(".safetensors")
    target.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"or {name} to it") as caught:
        ModelPaths.from_model_dir(tmp_path)
    assert str(place) in str(caught.value)
    assert getattr(ModelPaths.from_model_dir(tmp_path, **{name: str(tmp_path / "elsewhere")}), name).exists()


def test_networks_alone_need_no_parts_of_libraries(tmp_path):
    tiny.write_model_dir(tmp_path)
    (tmp_path / LAYOUT["vae_path"]).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="vae_path"):
        ModelPaths.from_model_dir(tmp_path)
    assert ModelPaths.from_model_dir(tmp_path, networks_only=True).vae_path == tmp_path / LAYOUT["vae_path"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b"\xff\xfe{", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
    ],
)
def test_odd_configurations_are_one_line(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
