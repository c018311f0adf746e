"""Prompts of the tests."""

import json

from tests.demo.pack import PACK_PX
from vexpress.comfyui.folders import EMBEDDED
from vexpress.model_folder import EMBEDDED_MODEL_DIR
from vexpress.options import load_model_defaults

PORTRAIT = {"class_type": "LoadImage", "inputs": {"image": "portrait.png"}}
SPEECH = {"class_type": "LoadAudio", "inputs": {"audio": "speech.wav"}}


def load_model(folder: str = EMBEDDED) -> dict:
    """The loader, with its options left as they are."""
    options = {"dtype": "unset", "test_stage": "stage_3", "face_models": "unset"}
    return {"class_type": "VExpress_LoadModel", "inputs": {"model_folder": folder, **options}}


def sampler_values(object_info: dict, name: str, **changes) -> dict:
    """A sampler's widgets: the embedded model's options, in two steps."""
    values = {
        one: facts["default"]
        for one, (_, facts) in object_info[name]["input"]["required"].items()
        if "default" in facts
    }
    return values | load_model_defaults(EMBEDDED_MODEL_DIR) | {"num_inference_steps": 2} | changes


def talking_portrait(object_info: dict, folder: str = EMBEDDED, **changes) -> dict:
    """Portrait and speech to a video; a still head."""
    values = {"retarget_strategy": "fix_face", "filename_prefix": "test/video"} | changes
    name = "VExpress_SampleToVideo"
    links = {"model": ["model", 0], "portrait": ["portrait", 0], "audio": ["speech", 0]}
    sampler = {"class_type": name, "inputs": links | sampler_values(object_info, name, **values)}
    return {"model": load_model(folder), "portrait": PORTRAIT, "speech": SPEECH, "sampler": sampler}


def crop(folder: str = EMBEDDED) -> dict:
    """A model and no sampling: what is quick, and loads a model."""
    return {
        "model": load_model(folder),
        "portrait": PORTRAIT,
        "crop": {"class_type": "VExpress_CropPortrait", "inputs": {"model": ["model", 0], "image": ["portrait", 0]}},
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["crop", 0]}},
    }


def old_workflow(output_path: str, model: str = "./model_ckpts", size: int = PACK_PX) -> dict:
    """A workflow of the old pack, as its page saved it: ids, inputs and widgets' values by position."""
    nodes = [
        (1, "VEStringConstant", [], [model]),
        (2, "V_Express_Loader", [("vexpress_model_path", 1)], []),
        (3, "Load_Audio_Path", [], ["speech.wav", "Audio", {"hidden": False, "paused": False, "params": {}}]),
        (4, "Load_Image_Path", [], ["portrait.png", "image"]),
        (5, "VEINTConstant", [], [size]),
        (6, "Load_Kps_Path_From_Video", [("vexpress_model_path", 1), ("image_size", 5)], ["driving.mp4", "Video", {}]),
        (
            7,
            "V_Express_Sampler",
            [
                ("v_express_pipeline", 2),
                ("vexpress_model_path", 1),
                ("audio_path", 3),
                ("kps_path", 6),
                ("ref_image_path", 4),
                ("image_size", 5),
            ],
            [output_path, "naive_retarget", 30, 42, "fixed", 2, 3.5, 12, 1, 4, 0.95, 3],
        ),
        (8, "VEPreview_Video", [("video", 7)], [None]),
    ]
    links, made = [], []
    for number, kind, inputs, values in nodes:
        given = []
        for place, (name, source) in enumerate(inputs):
            links.append([len(links) + 1, source, 0, number, place, "*"])
            given.append({"name": name, "link": len(links)})
        made.append({"id": number, "type": kind, "inputs": given, "widgets_values": values})
    return json.loads(json.dumps({"nodes": made, "links": links, "version": 0.4}))
