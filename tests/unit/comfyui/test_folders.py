"""Names that anybody may send to the server: each leads to a file of its folder, or is refused in one line."""

import os

import pytest

from vexpress.comfyui import folders
from vexpress.errors import InputError
from vexpress.model_folder import EMBEDDED_MODEL_DIR


@pytest.fixture
def roots(tmp_path):
    """Two folders of models, and one beside them."""
    for name in ("models/released", "models/empty", "more/fine_tuned", "elsewhere/secret"):
        (tmp_path / name).mkdir(parents=True)
        if "empty" not in name:
            (tmp_path / name / "v-express").mkdir()
    return [tmp_path / "models", tmp_path / "more", tmp_path / "missing"]


def test_models_of_all_roots_are_found_the_embedded_one_last(roots):
    assert folders.find_models(roots) == {
        "released": roots[0] / "released",
        "fine_tuned": roots[1] / "fine_tuned",
        folders.EMBEDDED: EMBEDDED_MODEL_DIR,
    }


def test_the_first_of_two_models_of_one_name_is_taken(roots):
    (roots[1] / "released" / "v-express").mkdir(parents=True)
    assert folders.find_models(roots)["released"] == roots[0] / "released"


def test_a_root_may_be_a_model_itself(roots):
    (roots[0] / "v-express").mkdir()
    assert folders.find_models(roots)["models"] == roots[0]


@pytest.mark.parametrize("name", ["empty", "../elsewhere/secret", "", "nobody"])
def test_no_other_folder_is_a_model(roots, name):
    with pytest.raises(InputError, match="no folder of a model.*released, fine_tuned") as error:
        folders.model_folder(name, roots)
    assert "-m vexpress download" in str(error.value) and "\n" not in str(error.value)


def test_adapters_are_found_in_and_below_the_roots_and_nowhere_else(tmp_path):
    for name in ("loras/a.safetensors", "loras/people/b.safetensors", "loras/notes.txt", "secret.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    roots = [tmp_path / "loras", tmp_path / "missing"]
    assert list(folders.find_adapters(roots)) == ["a.safetensors", "people/b.safetensors"]
    assert folders.adapter_file("people/b.safetensors", roots) == tmp_path / "loras" / "people" / "b.safetensors"
    for name in ("../secret.safetensors", "notes.txt", "", "c.safetensors"):
        with pytest.raises(InputError, match="vexpress person"):
            folders.adapter_file(name, roots)


@pytest.mark.parametrize("typed", ["./model_ckpts", "model_ckpts", ".\\model_ckpts", "model_ckpts/"])
def test_paths_of_the_old_pack_lead_below_the_pack_or_the_roots(roots, tmp_path, typed):
    (roots[1] / "model_ckpts" / "v-express").mkdir(parents=True)
    assert folders.old_model_folder(typed, tmp_path / "pack", roots) == roots[1] / "model_ckpts"
    (tmp_path / "pack" / "model_ckpts" / "v-express").mkdir(parents=True)
    assert folders.old_model_folder(typed, tmp_path / "pack", roots) == tmp_path / "pack" / "model_ckpts"


def test_names_of_models_are_taken_by_the_old_pack_too(roots, tmp_path):
    assert folders.old_model_folder(folders.EMBEDDED, tmp_path, roots) == EMBEDDED_MODEL_DIR


@pytest.mark.parametrize("typed", ["../elsewhere/secret", "{tmp_path}/elsewhere/secret", "/etc", "", "..", "a\0b"])
def test_other_paths_of_the_old_pack_are_refused(roots, tmp_path, typed):
    with pytest.raises(InputError, match="no folder of a model|no path"):
        folders.old_model_folder(typed.format(tmp_path=tmp_path), tmp_path / "pack", roots)


def test_files_are_listed_by_suffix(tmp_path):
    for name in ("b.npz", "a.PTH", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.npz").mkdir()
    assert folders.list_files(tmp_path, (".npz", ".pth")) == ["a.PTH", "b.npz"]
    assert folders.list_files(tmp_path / "missing") == []


@pytest.mark.parametrize("name", ["../secret.npz", "/etc/passwd", "missing.npz", "", "link.npz", "a\0b", "long"])
def test_names_that_lead_out_of_the_input_folder_are_refused(tmp_path, name):
    (tmp_path / "input").mkdir()
    (tmp_path / "secret.npz").touch()
    (tmp_path / "input" / "link.npz").symlink_to(tmp_path / "secret.npz")
    with pytest.raises(InputError, match="no file"):
        folders.file_in(tmp_path / "input", name.replace("long", 5000 * "x"), "file")


def test_files_in_folders_below_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.npz").touch()
    assert folders.file_in(tmp_path, "sub/a.npz", "file") == tmp_path / "sub" / "a.npz"


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("test.mp4", "test.mp4"),
        ("videos/test", "videos/test.mp4"),
        ("a.b", "a.b.mp4"),
        ("{output}/x/test.mp4", "x/test.mp4"),
        ("E:\\ComfyUI_windows_portable\\ComfyUI\\output\\test3.mp4", "test3.mp4"),
        ("D:/ComfyUI/output/sub\\test.mp4", "sub/test.mp4"),
    ],
)
def test_typed_outputs_land_in_the_output_folder(tmp_path, typed, expected):
    assert folders.old_output_file(typed.format(output=tmp_path), tmp_path) == tmp_path / expected


@pytest.mark.skipif(os.name == "nt", reason="paths of another system")
@pytest.mark.parametrize(
    "typed",
    [
        "../test.mp4",
        "/tmp/test.mp4",
        "",
        ".",
        "C:\\Users\\me\\test.mp4",
        "C:\\ComfyUI\\output\\..\\..\\test.mp4",
        "a\0b",
    ],
)
def test_typed_outputs_elsewhere_are_refused(tmp_path, typed):
    with pytest.raises(InputError, match="must be a file in") as error:
        folders.old_output_file(typed, tmp_path)
    assert error.value.field == "output_path"


def test_a_fingerprint_changes_with_files(tmp_path):
    (tmp_path / "a").write_text("1")
    before = folders.fingerprint(tmp_path)
    assert folders.fingerprint(tmp_path) == before
    (tmp_path / "a").write_text("12")
    assert folders.fingerprint(tmp_path) != before
