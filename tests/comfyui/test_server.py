"""What a user of ComfyUI counts on: errors at their input, progress, interruption, memory, folders of models."""

import json
import time

import pytest

from tests.comfyui import prompts
from tests.comfyui.server import error_of
from vexpress.model_folder import EMBEDDED_MODEL_DIR


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"image_width": 100}, "image_width=100: must be a multiple of 8, 64 to 2048"),
        ({"image_height": 8}, "image_height=8"),
        ({"scheduler": "nobody"}, "scheduler=nobody: must be one of ddim"),
        ({"context_overlap": 16}, "context_overlap=16"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"audio_attention_weight": 1000.0}, "audio_attention_weight"),
        ({"fps": 0.5}, "fps"),
    ],
)
def test_a_wrong_value_is_told_at_its_input_before_anything_runs(server, object_info, changes, told):
    status, answer = server.post("/prompt", {"prompt": prompts.talking_portrait(object_info, **changes)})
    assert status == 400
    errors = answer["node_errors"]["sampler"]["errors"]
    [name] = changes
    assert any(error["extra_info"]["input_name"] == name for error in errors)
    assert any(told in error["details"] for error in errors)


def test_a_missing_model_is_told_before_anything_runs(server, object_info):
    status, answer = server.post("/prompt", {"prompt": prompts.talking_portrait(object_info, "nobody")})
    assert status == 400
    [error] = answer["node_errors"]["model"]["errors"]
    assert "vexpress download --model_dir" in error["details"] and error["extra_info"]["input_name"] == "model_folder"


def test_a_model_without_its_files_is_one_clear_message(server):
    (server.base_dir / "models" / "vexpress" / "unfinished" / "v-express").mkdir(parents=True)
    history = server.wait(server.submit(prompts.crop("unfinished")))
    message = error_of(history)
    assert message.startswith("model file not found") and "\n" not in message


@pytest.mark.parametrize("name", ["../secret.npz", "/etc/passwd", "nobody.npz"])
def test_files_elsewhere_are_refused(server, name):
    loader = {"class_type": "VExpress_LoadKps", "inputs": {"file": name, "kps_fps": 0.0}}
    drawn = {"class_type": "VExpress_DrawKps", "inputs": {"kps": ["kps", 0], "width": 0, "height": 0}}
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["drawn", 0]}}
    status, answer = server.post("/prompt", {"prompt": {"kps": loader, "drawn": drawn, "preview": preview}})
    assert status == 400 and "is no file in" in answer["node_errors"]["kps"]["errors"][0]["details"]


def test_a_portrait_without_a_face_is_one_clear_message(server, object_info):
    prompt = prompts.talking_portrait(object_info)
    prompt["portrait"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 96, "height": 96, "batch_size": 1, "color": 0},
    }
    message = error_of(server.wait(server.submit(prompt)))
    assert message.startswith("portrait: no face was found") and "\n" not in message


def test_progress_is_told_window_by_window_with_previews(server, object_info):
    before, previews = len(server.events), server.num_previews
    server.run(prompts.talking_portrait(object_info, seed=1, sampling="joint"))
    time.sleep(0.5)
    told = [event["data"] for event in server.events[before:] if event["type"] == "progress"]
    windows = [one["value"] for one in told if one["max"] == 2 * 3]
    frames = [one["value"] for one in told if one["max"] == 30]
    assert sorted(set(windows)) == list(range(7)) and set(range(1, 31)) <= set(frames)
    assert {one["node"] for one in told} == {"sampler"}
    assert server.num_previews > previews


@pytest.mark.parametrize("sampling", ["joint", "rolling"])
def test_an_interruption_takes_effect_within_a_window(server, object_info, sampling):
    before = len(server.events)
    number = server.submit(prompts.talking_portrait(object_info, seed=2, num_inference_steps=400, sampling=sampling))

    def updates() -> list[float]:
        return [event["time"] for event in server.events[before:] if event["type"] == "progress"]

    while len(updates()) < 8:
        time.sleep(0.02)
    server.post("/interrupt")
    asked = time.monotonic()
    history = server.wait(number)
    assert history["status"]["messages"][-1][0] == "execution_interrupted"
    assert sum(one > asked for one in updates()) <= 1  # of some hundred windows that were still to come
    server.run(prompts.talking_portrait(object_info, seed=3))


def test_a_second_prompt_reuses_the_model(server, object_info):
    server.run(prompts.talking_portrait(object_info, seed=4))
    before = len(server.events)
    server.run(prompts.talking_portrait(object_info, seed=5))
    [cached] = [event["data"]["nodes"] for event in server.events[before:] if event["type"] == "execution_cached"]
    assert {"model", "portrait", "speech"} <= set(cached) and "sampler" not in cached
    run = [event["data"]["node"] for event in server.events[before:] if event["type"] == "executing"]
    assert "sampler" in run and "model" not in run


def test_a_changed_model_folder_is_loaded_anew(server):
    server.run(prompts.crop("second"))
    defaults = next(path for path in server.base_dir.parent.rglob("second/inference_defaults.json"))
    defaults.write_text(json.dumps(json.loads(defaults.read_text())) + " ")
    before = len(server.events)
    server.run(prompts.crop("second"))
    assert "model" in [event["data"]["node"] for event in server.events[before:] if event["type"] == "executing"]


def test_models_of_extra_paths_are_offered(server, object_info):
    kind, facts = object_info["VExpress_LoadModel"]["input"]["required"]["model_folder"]
    assert facts["options"][0] == "second" and facts["options"][-1].startswith("embedded")
    server.run(prompts.talking_portrait(object_info, "second"))


def test_free_gives_the_memory_back(server):
    """With a large image autoencoder, random, in place of the embedded one: 0.4 GB."""
    make_large_model(server.base_dir / "models" / "vexpress" / "large")
    server.post("/free", {"unload_models": True, "free_memory": True})
    server.run(prompts.crop())
    time.sleep(2)
    before = server.resident_mib()
    server.run(prompts.crop("large"))
    loaded = server.resident_mib()
    server.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + 30
    while time.monotonic() < end and server.resident_mib() > loaded - 250:
        time.sleep(0.2)
    freed = server.resident_mib()
    print(f"resident: {before:.0f} MiB, with the model {loaded:.0f}, after /free {freed:.0f}")
    assert loaded - before > 250 and loaded - freed > 250
    server.run(prompts.crop("large"))


def make_large_model(folder) -> None:
    import shutil

    from diffusers import AutoencoderDC

    shutil.copytree(EMBEDDED_MODEL_DIR, folder)
    config = dict(AutoencoderDC.load_config(folder / "sd-vae-ft-mse"))
    widths = [64, 128, 256, 512, 1024]
    config |= {"encoder_block_out_channels": widths, "decoder_block_out_channels": widths}
    statistics = {name: config[name] for name in ("latents_mean", "latents_std")}
    shutil.rmtree(folder / "sd-vae-ft-mse")
    vae = AutoencoderDC.from_config(config)
    vae.register_to_config(**statistics)
    vae.save_pretrained(folder / "sd-vae-ft-mse")
