"""What the nodes import of ComfyUI, as far as schemas go, so that they can be declared without it.

That this declares as ComfyUI does is shown by tests/data/comfyui/object_info.json, which a real one answered.
"""

import asyncio
import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from enum import Enum
from typing import Any


class UploadType(str, Enum):
    image = "image_upload"


class FolderType(str, Enum):
    input, output, temp = "input", "output", "temp"


class Declared:
    """An input or an output: its id and what was said of it."""

    def __init__(self, id: str, options: list | None = None, types: list | None = None, **facts: Any):
        self.id, self.types, self.optional = id, types, facts.pop("optional", False)
        self.default, self.extra_dict = facts.pop("default", None), {}
        self.upload = facts.pop("upload", None)
        self.facts = facts | ({} if options is None else {"options": options})

    @property
    def io_type(self) -> str:
        return ",".join(one.name for one in self.types) if self.types else self.kind

    def info(self) -> tuple[str, dict]:
        facts = {**self.extra_dict, **self.facts, "default": self.default}
        if self.upload:
            facts[self.upload.value] = True
        facts |= {"COMBO": {"multiselect": False}, "STRING": {"multiline": False}}.get(self.kind, {})
        return self.io_type, {name: value for name, value in facts.items() if value is not None}


class WidgetInput(Declared):
    pass


def io_class(name: str, is_widget: bool = False) -> type:
    """A type of ComfyUI's with its `Input` and `Output`."""
    base = WidgetInput if is_widget else Declared
    return type(
        name,
        (),
        {
            "name": name,
            "Input": type("Input", (base,), {"kind": name}),
            "Output": type("Output", (Declared,), {"kind": name}),
        },
    )


class Schema:
    def __init__(self, **facts: Any):
        self.facts = facts
        self.node_id, self.inputs, self.outputs = (
            facts["node_id"],
            facts.get("inputs") or [],
            facts.get("outputs", []),
        )
        ids = [one.id for one in (*self.inputs, *self.outputs)]
        assert len(set(ids)) == len(ids), f"{self.node_id}: ids must be unique between inputs and outputs"

    def info(self) -> dict[str, Any]:
        """As /object_info answers."""
        given = {"required": {}}
        for one in self.inputs:
            given.setdefault("optional" if one.optional else "required", {})[one.id] = list(one.info())
        return {
            "input": given,
            "output": [one.io_type for one in self.outputs],
            "output_name": [one.facts["display_name"] for one in self.outputs],
            "output_tooltips": [one.facts.get("tooltip") for one in self.outputs],
            "name": self.node_id,
            "display_name": self.facts["display_name"],
            "description": self.facts["description"],
            "category": self.facts["category"],
            "output_node": self.facts.get("is_output_node", False),
            "deprecated": self.facts.get("is_deprecated", False),
        }


class NodeReplace:
    def __init__(self, **facts: Any):
        self.facts = facts


class Registry:
    """Where replacements are registered."""

    registered: list[NodeReplace] = []

    async def register(self, replacement: NodeReplace) -> None:
        self.registered.append(replacement)


def modules(base_dir: str) -> dict[str, types.ModuleType]:
    """The modules by name; all folders are below `base_dir`."""
    io = types.SimpleNamespace(
        **{
            name.capitalize(): io_class(name, is_widget=True) for name in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
        },
        **{name.capitalize(): io_class(name) for name in ("IMAGE", "AUDIO", "VIDEO")},
        MultiType=io_class("MULTI"),
        Custom=io_class,
        ComfyNode=object,
        Input=Declared,
        WidgetInput=WidgetInput,
        Schema=Schema,
        UploadType=UploadType,
        FolderType=FolderType,
        Hidden=types.SimpleNamespace(prompt="prompt", extra_pnginfo="extra_pnginfo"),
        NodeOutput=lambda *values, ui=None: types.SimpleNamespace(values=values, ui=ui),
        NodeReplace=NodeReplace,
    )
    named = {
        "comfy_api.latest": {
            "io": io,
            "ui": types.SimpleNamespace(PreviewVideo=lambda shown: shown, SavedResult=lambda *parts: parts),
            "Input": types.SimpleNamespace(Video=object),
            "InputImpl": types.SimpleNamespace(VideoFromFile=lambda path: path),
            "ComfyExtension": object,
            "ComfyAPI": lambda: types.SimpleNamespace(node_replacement=Registry()),
        },
        "comfy_api": {},
        "comfy": {},
        "comfy.model_management": {},
        "comfy.cli_args": {"args": types.SimpleNamespace(disable_metadata=False)},
        "comfy.model_patcher": {"ModelPatcher": object},
        "comfy.utils": {"ProgressBar": object},
        "folder_paths": {
            "models_dir": f"{base_dir}/models",
            "get_folder_paths": lambda kind: [f"{base_dir}/models/{kind}"],
            "add_model_folder_path": lambda *_, **__: None,
            **{f"get_{name}_directory": lambda name=name: f"{base_dir}/{name}" for name in ("input", "output", "temp")},
        },
    }
    made = {}
    for name, content in named.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(content)
    made["comfy"].model_management = made["comfy.model_management"]
    return made


@contextlib.contextmanager
def installed(base_dir: str) -> Iterator[types.ModuleType]:
    """Has the nodes be imported without ComfyUI, all of whose folders are below `base_dir`; gives their extension."""
    names = ("extension", "nodes", "keypoint_nodes", "old_nodes", "old_file_nodes", "widgets", "host")
    ours = [f"vexpress.comfyui.{name}" for name in names]
    made = modules(base_dir)
    sys.modules.update(made)
    for name in ours:
        sys.modules.pop(name, None)
    try:
        yield importlib.import_module("vexpress.comfyui.extension")
    finally:
        for name in (*made, *ours):
            sys.modules.pop(name, None)


def declared_nodes() -> dict[str, Schema]:
    """Id -> schema of all nodes, while `installed`."""
    extension = sys.modules["vexpress.comfyui.extension"]
    nodes = asyncio.run(asyncio.run(extension.comfy_entrypoint()).get_node_list())
    return {schema.node_id: schema for schema in (node.define_schema() for node in nodes)}
