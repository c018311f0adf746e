"""The nodes as they are declared, against what a real ComfyUI said of them; and their words in two languages."""

import asyncio
import json
from dataclasses import fields
from pathlib import Path

import pytest

from tests.unit.comfyui import stub
from tests.unit.comfyui.help_pages import help_pages
from vexpress.options import MotionOptions, SamplingOptions

ROOT = Path(__file__).parents[3]
RECORDED = json.loads((ROOT / "tests" / "data" / "comfyui" / "object_info.json").read_text())
OLD_IDS = {
    *("V_Express_Loader", "V_Express_Sampler", "Load_Audio_Path", "Load_Audio_Path_From_Video", "Load_Kps_Path"),
    *("Load_Kps_Path_From_Video", "Load_Image_Path", "Load_Video_Path", "VEINTConstant", "VEStringConstant"),
    "VEPreview_Video",
}


OPTIONS = {field.name for table in (SamplingOptions, MotionOptions) for field in fields(table)}
"""Inputs whose bounds, choices and words are the options table's, and change with it."""


@pytest.fixture
def extension(tmp_path):
    """The module that ComfyUI loads, without ComfyUI."""
    with stub.installed(str(tmp_path)) as module:
        yield module


@pytest.fixture
def schemas(extension) -> dict[str, stub.Schema]:
    return stub.declared_nodes()


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_nodes_are_declared_as_recorded(schemas, name):
    """Workflows of users hold ids, and widgets' values by position: new options may only come last."""
    recorded, info = RECORDED[name], json.loads(json.dumps(schemas[name].info()))
    for kind, recorded_inputs in ((kind, inputs) for kind, inputs in recorded["input"].items() if kind != "hidden"):
        inputs = info["input"].pop(kind)
        assert list(inputs)[: len(recorded_inputs)] == recorded["input_order"][kind]
        for one, said in recorded_inputs.items():
            assert inputs[one] == said or (one in OPTIONS and inputs[one][0] == said[0])
        assert set(inputs) - set(recorded_inputs) <= OPTIONS
    assert not any(info.pop("input").values())
    assert info == {key: recorded[key] for key in info}


def test_every_node_is_recorded(schemas):
    assert set(schemas) == set(RECORDED)


def test_ids_are_ours_or_the_old_packs(schemas):
    assert {name for name in schemas if not name.startswith("VExpress_")} == OLD_IDS
    assert {name for name, schema in schemas.items() if schema.facts.get("is_deprecated")} == OLD_IDS


def test_every_sampling_option_is_an_input(schemas):
    names = {one.id for name in ("VExpress_LoadModel", "VExpress_SampleToVideo") for one in schemas[name].inputs}
    assert {field.name for field in fields(SamplingOptions)} <= names


def test_advanced_options_are_marked(schemas):
    inputs = {one.id: one.info()[1] for one in schemas["VExpress_Sample"].inputs}
    assert inputs["context_overlap"]["advanced"] and "advanced" not in inputs["guidance_scale"]
    assert inputs["seed"]["control_after_generate"]
    assert inputs["image_width"]["step"] == 8


def test_replacements_name_real_inputs(extension, schemas):
    stub.Registry.registered.clear()
    asyncio.run(extension.VExpressExtension().on_load())
    assert {one.facts["old_node_id"] for one in stub.Registry.registered} == set(extension.REPLACEMENTS)
    for one in stub.Registry.registered:
        old = {given.id for given in schemas[one.facts["old_node_id"]].inputs}
        assert set(one.facts["old_widget_ids"]) <= old
        assert {pair["old_id"] for pair in one.facts["input_mapping"]} <= old
        new = schemas.get(one.facts["new_node_id"])  # None for ComfyUI's own
        if new:
            assert {pair["new_id"] for pair in one.facts["input_mapping"]} <= {given.id for given in new.inputs}


def test_replacements_are_left_out_where_comfyui_has_none(extension, monkeypatch):
    monkeypatch.delattr(extension.io, "NodeReplace")
    asyncio.run(extension.VExpressExtension().on_load())


def test_help_pages_are_as_the_nodes_are_declared(schemas):
    for path, text in help_pages(schemas).items():
        assert path.is_file() and path.read_text() == text, "run: python -m tests.unit.comfyui.help_pages"


def test_the_other_language_has_words_for_all_nodes(schemas):
    words = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text())
    assert set(words) == set(schemas)
    for name, schema in schemas.items():
        assert words[name]["display_name"] and words[name]["description"]
        ids = {one.id for one in schema.inputs}
        assert ids - OPTIONS <= set(words[name].get("inputs", {})) <= ids


def test_the_root_is_inert():
    """pytest and pip meet the root's module; it imports nothing until ComfyUI calls."""
    assert "import" not in (ROOT / "__init__.py").read_text().split("async def")[0].split('"""')[2]


def test_example_workflows_hold_our_nodes_and_pictures(schemas):
    paths = sorted((ROOT / "example_workflows").glob("*.json"))
    assert len(paths) == 6
    for path in paths:
        assert path.with_suffix(".jpg").is_file()
        workflow = json.loads(path.read_text())
        graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
        types = {node["type"] for graph in graphs for node in graph["nodes"]}
        assert {name for name in types if name.startswith("VExpress")} <= set(schemas) and types & set(schemas)


def test_example_workflows_sample_as_the_embedded_model_wants():
    wanted = json.loads((ROOT / "vexpress" / "demo_pack" / "inference_defaults.json").read_text())
    for path in (ROOT / "example_workflows").glob("*.json"):
        workflow = json.loads(path.read_text())
        graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
        samplers = [node for graph in graphs for node in graph["nodes"] if node["type"].startswith("VExpress_Sample")]
        for node in samplers:
            names = [entry["widget"]["name"] for entry in node["inputs"] if "widget" in entry]
            names.insert(names.index("seed") + 1, "what ComfyUI does with the seed")
            values = dict(zip(names, node["widgets_values"], strict=True))
            shared = wanted.keys() & values.keys()
            assert len(shared) > 10
            assert {name: values[name] for name in shared} == {name: wanted[name] for name in shared}, path
