"""Every example workflow, and one of the old pack, to a video that is read back."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.comfyui import prompts
from tests.comfyui.conftest import EXAMPLES, SECONDS
from tests.comfyui.record import RECORD, our_nodes
from tests.comfyui.server import ROOT, error_of
from tests.comfyui.workflow import to_prompt
from tests.demo.pack import PACK_PX, load_pipeline
from vexpress.comfyui.folders import EMBEDDED
from vexpress.media.audio import load_audio
from vexpress.media.images import load_image
from vexpress.media.video import probe_video, read_frames
from vexpress.models.lora import adaptable_layers, adapter_shapes
from vexpress.pipeline.adapters import NETWORKS as ADAPTED
from vexpress.weights import Adapter, base_digest, save_adapter

WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
FPS = 30


def videos(server, outputs: dict) -> list:
    """Files of all videos that nodes show."""
    shown = [one for content in outputs.values() for one in content.get("images", [])]
    return [server.shown_file(one) for one in shown if one["filename"].endswith(".mp4")]


def check_video(path, seconds: float = SECONDS, size: int = PACK_PX) -> None:
    info = probe_video(path)
    frames = [frame for _, frame in read_frames(path)]
    assert (info.width, info.height, info.fps) == (size, size, FPS)
    assert len(frames) == round(seconds * FPS)
    assert load_audio(path).duration_seconds == pytest.approx(len(frames) / FPS, abs=0.03)
    assert np.std(frames[0]) > 10  # a picture, not grey


def test_nodes_are_as_recorded(comfyui, tmp_path, object_info):
    ours = our_nodes(object_info)
    recorded = json.loads(RECORD.read_text())
    assert set(ours) == set(recorded), "run: python -m tests.comfyui.record"
    for name, info in recorded.items():
        assert ours[name]["input_order"] == info["input_order"]
        assert {**ours[name], "input": None} == {**info, "input": None}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_make_a_video(server, object_info, path):
    prompt = to_prompt(json.loads(path.read_text()), object_info)
    for node in prompt.values():
        if "num_inference_steps" in node["inputs"]:
            node["inputs"]["num_inference_steps"] = 2
    [video] = videos(server, server.run(prompt))
    check_video(video, load_audio(EXAMPLES / "speech.wav").duration_seconds if path.stem == "demo" else SECONDS)


def test_example_workflows_are_in_the_template_browser(server):
    assert set(server.get("/workflow_templates")["vexpress"]) == {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize(
    "output_path", ["E:\\ComfyUI_windows_portable\\ComfyUI\\output\\old.mp4", "{output}/old.mp4", "old"]
)
def test_a_workflow_of_the_old_pack_runs_unchanged(server, object_info, output_path):
    """With models in the old layout, below models/vexpress."""
    folder = server.base_dir / "models" / "vexpress" / "model_ckpts"
    if not folder.exists():
        shutil.copytree(ROOT / "vexpress" / "demo_pack", folder)
    output_dir = server.base_dir / "output"
    (output_dir / "old.mp4").unlink(missing_ok=True)
    workflow = prompts.old_workflow(output_path.format(output=output_dir))
    outputs = server.run(to_prompt(workflow, object_info))
    assert set(videos(server, outputs)) == {output_dir / "old.mp4"} and set(outputs) == {"7", "8"}
    check_video(output_dir / "old.mp4")


@pytest.mark.parametrize("output_path", ["/tmp/old.mp4", "../old.mp4", "C:\\Users\\me\\old.mp4", ""])
def test_outputs_of_the_old_pack_elsewhere_are_refused(server, object_info, output_path):
    prompt = to_prompt(prompts.old_workflow(output_path), object_info)
    status, answer = server.post("/prompt", {"prompt": prompt})
    assert status == 400
    details = [error["details"] for error in answer["node_errors"]["7"]["errors"]]
    assert any("output_path" in one and "must be a file in" in one for one in details)


@pytest.mark.parametrize("model", ["../../../etc", "/etc", "nobody"])
def test_models_of_the_old_pack_elsewhere_are_refused(server, object_info, model):
    prompt = to_prompt(prompts.old_workflow("old.mp4", model), object_info)
    history = server.wait(server.submit(prompt))
    assert "is no folder of a model" in error_of(history) and "vexpress download" in error_of(history)


def test_a_node_makes_the_programs_video(server, object_info, comfyui, tmp_path):
    """Bit by bit, with the same interpreter."""
    prompt = prompts.talking_portrait(object_info, seed=7)
    prompt["kps"] = {"class_type": "VExpress_LoadKps", "inputs": {"file": "driving_kps.npz", "kps_fps": 0.0}}
    prompt["sampler"]["inputs"] |= {"kps": ["kps", 0], "retarget_strategy": "naive_retarget"}
    [video] = videos(server, server.run(prompt))
    inputs = server.base_dir / "input"
    flags = ["--reference_image_path", inputs / "portrait.png", "--audio_path", inputs / "speech.wav"]
    flags += ["--kps_path", inputs / "driving_kps.npz", "--retarget_strategy", "naive_retarget"]
    flags += ["--output_path", tmp_path / "video.mp4", "--num_inference_steps", "2", "--seed", "7"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [comfyui[1], "-m", "vexpress", "generate", *flags]
    subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, check=True, capture_output=True)
    pairs = zip(read_frames(video), read_frames(tmp_path / "video.mp4"), strict=True)
    assert all(np.array_equal(one, other) for (_, one), (_, other) in pairs)


def test_a_video_holds_its_workflow(server, object_info):
    import av

    prompt = prompts.talking_portrait(object_info, seed=8)
    [video] = videos(server, server.run(prompt))
    with av.open(str(video)) as container:
        assert json.loads(container.metadata["prompt"])["sampler"]["inputs"]["seed"] == 8


def test_videos_made_by_other_nodes_and_frames_in_memory_are_taken(server, object_info):
    """A VIDEO without a file to Keypoints from Video, an IMAGE batch to Contact Sheet."""
    values = prompts.sampler_values(object_info, "VExpress_Sample", retarget_strategy="no_retarget")
    prompt = {
        "model": prompts.load_model(),
        "portrait": prompts.PORTRAIT,
        "speech": prompts.SPEECH,
        "driving": {"class_type": "LoadVideo", "inputs": {"file": "driving.mp4"}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["driving", 0]}},
        "made": {"class_type": "CreateVideo", "inputs": {"images": ["parts", 0], "fps": ["parts", 2]}},
        "kps": {
            "class_type": "VExpress_KpsFromVideo",
            "inputs": {"model": ["model", 0], "video": ["made", 0], "max_gap": 12},
        },
        "sampler": {
            "class_type": "VExpress_Sample",
            "inputs": values
            | {"model": ["model", 0], "portrait": ["portrait", 0], "audio": ["speech", 0], "kps": ["kps", 0]},
        },
        "sheet": {
            "class_type": "VExpress_ContactSheet",
            "inputs": {
                "portrait": ["portrait", 0],
                "clip": ["sampler", 0],
                "audio": ["sampler", 1],
                "kps": ["sampler", 3],
            },
        },
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["sheet", 0]}},
    }
    [shown] = server.run(prompt)["preview"]["images"]
    assert load_image(server.shown_file(shown)).width > 1000


def test_the_old_packs_other_nodes_run(server, object_info):
    """Sound of a video, keypoints of a file, and a video that is only shown."""
    workflow = to_prompt(prompts.old_workflow("other.mp4", EMBEDDED), object_info)
    server.upload(EXAMPLES / "driving.mp4", "sound.mp4")
    workflow["3"] = {"class_type": "Load_Audio_Path_From_Video", "inputs": {"video_path": "sound.mp4"}}
    workflow["6"] = {"class_type": "Load_Kps_Path", "inputs": {"kps_path": "driving_kps.npz"}}
    workflow["9"] = {"class_type": "Load_Video_Path", "inputs": {"video_path": "driving.mp4"}}
    workflow["8"]["inputs"]["video"] = ["9", 0]
    outputs = server.run(workflow)
    assert server.shown_file(outputs["8"]["images"][0]) == server.base_dir / "input" / "driving.mp4"
    check_video(server.base_dir / "output" / "other.mp4", load_audio(EXAMPLES / "driving.mp4").duration_seconds)


@pytest.mark.parametrize("prefix", ["../outside", "/tmp/outside"])
def test_names_outside_of_the_output_folder_are_refused(server, object_info, prefix):
    history = server.wait(server.submit(prompts.talking_portrait(object_info, filename_prefix=prefix)))
    assert "outside the output folder is not allowed" in error_of(history)


def write_adapter(path: Path, base_model: str | None = None) -> None:
    """An adapter of the embedded model, with random weights, or of another base model."""
    pipeline = load_pipeline()
    networks = {name: getattr(pipeline, name) for name in ADAPTED}
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    shapes = adapter_shapes(adaptable_layers(pipeline.denoising_unet)[layer], 2)
    generator = torch.Generator().manual_seed(0)
    weights = {f"{layer}.{part}.weight": torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    digest = base_model or base_digest({name: network for name, network in networks.items() if network is not None})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_adapter(path, Adapter(2, {"denoising_unet": [".*attn2.*"]}, digest, {"denoising_unet": weights}))


def test_an_adapter_changes_the_video_by_its_weight(server, object_info):
    loras = server.base_dir / "models" / "loras"
    write_adapter(loras / "people" / "anna.safetensors")
    write_adapter(loras / "other.safetensors", base_model="0" * 64)

    def frames(lora: str | None, weight: float = 1.0) -> list:
        prompt = prompts.talking_portrait(object_info, seed=7)
        if lora:
            values = {"model": ["model", 0], "lora": lora, "weight": weight, "lora_any_base": False}
            prompt["lora"] = {"class_type": "VExpress_LoadLora", "inputs": values}
            prompt["sampler"]["inputs"]["model"] = ["lora", 0]
        history = server.wait(server.submit(prompt))
        if history["status"]["status_str"] != "success":
            return [error_of(history)]
        return [frame for _, frame in read_frames(videos(server, history["outputs"])[0])]

    plain, off, on = frames(None), frames("people/anna.safetensors", 0.0), frames("people/anna.safetensors")
    assert all(np.array_equal(one, other) for one, other in zip(plain, off, strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(plain, on, strict=True))
    [message] = frames("other.safetensors")
    assert "was trained on another base model" in message and "\n" not in message
