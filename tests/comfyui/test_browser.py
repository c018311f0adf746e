"""ComfyUI's page in a real browser: workflows open whole, and send what the tests send."""

import json
import os
import time
from pathlib import Path

import pytest

from tests.comfyui import prompts
from tests.comfyui.browser import DRIVER, Browser, open_comfyui
from tests.comfyui.server import ROOT
from tests.comfyui.workflow import to_prompt

WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def page(server):
    if DRIVER is None:
        pytest.skip("no chromedriver; Debian has it in chromium-driver")
    browser = Browser()
    open_comfyui(browser, server.port)
    yield browser
    browser.stop()


LOAD = """
await app.loadGraphData(args[0]); await new Promise(resolve => setTimeout(resolve, 1000));
const graphs = [app.graph, ...(app.graph.subgraphs ? app.graph.subgraphs.values() : [])];
const nodes = graphs.flatMap(graph => graph.nodes ?? graph._nodes);
const missing = nodes.filter(node => !node.isSubgraphNode?.() && !(node.type in LiteGraph.registered_node_types));
const red = nodes.filter(node => node.has_errors);
const text = document.body.innerText;
return {count: nodes.length, missing: [...missing, ...red].map(node => node.type),
        dialog: /missing node|nodes are missing|types were not found/i.test(text),
        alert: /invalid workflow/i.test(text),
        prompt: (await app.graphToPrompt()).output};
"""


def opened(page, workflow: dict, object_info: dict) -> dict:
    """Opens a workflow, which has to be whole, and gives the prompt that the page makes of it."""
    found = page.script(LOAD, workflow)
    assert found["missing"] == [] and not found["dialog"] and not found["alert"]
    assert found["count"] >= len(workflow["nodes"])
    expected = to_prompt(workflow, object_info)
    sent = {
        name: {"class_type": node["class_type"], "inputs": node["inputs"]} for name, node in found["prompt"].items()
    }
    for node in sent.values():  # what upload buttons add
        declared = object_info[node["class_type"]]["input"]
        names = {**declared.get("required", {}), **declared.get("optional", {})}
        node["inputs"] = {name: value for name, value in node["inputs"].items() if name in names}
    assert sent == expected
    return found["prompt"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_open_whole(page, object_info, path):
    opened(page, json.loads(path.read_text()), object_info)


def test_a_workflow_of_the_old_pack_opens_whole(page, object_info):
    workflow = prompts.old_workflow("old.mp4")
    for node in workflow["nodes"]:  # as its page saved them
        node |= {
            "pos": [300 * node["id"], 100],
            "size": [250, 200],
            "flags": {},
            "properties": {},
            "mode": 0,
            "order": node["id"],
        }
        declared = object_info[node["type"]]
        node["outputs"] = [
            {"name": name, "type": kind, "links": [link[0] for link in workflow["links"] if link[1] == node["id"]]}
            for name, kind in zip(declared["output_name"], declared["output"])
        ]
        for given in node["inputs"]:
            given["type"] = {**declared["input"]["required"]}[given["name"]][0]
    for link in workflow["links"]:
        link[5] = next(node["outputs"][0]["type"] for node in workflow["nodes"] if node["id"] == link[1])
    workflow |= {"last_node_id": 8, "last_link_id": len(workflow["links"]), "groups": [], "config": {}, "extra": {}}
    opened(page, workflow, object_info)


def test_help_pages_and_words_are_served(page, server):
    for language, word in (("en", "Inputs"), ("zh", "输入")):
        text = page.script(
            f"return await (await fetch('/extensions/vexpress/docs/VExpress_Sample/{language}.md')).text();"
        )
        assert word in text
    words = server.get("/i18n")["zh"]["nodeDefs"]
    assert words["VExpress_LoadModel"]["display_name"] == "V-Express 加载模型"


def test_the_page_runs_the_demo(page, server, object_info):
    """The picture of the documentation, where $SCREENSHOT names a file."""
    workflow = json.loads((ROOT / "example_workflows" / "demo.json").read_text())
    open_comfyui(page, server.port)
    page.script(LOAD, workflow)
    known = set(server.get("/history"))
    page.script("app.canvas.ds.scale = 0.64; app.canvas.ds.offset = [130, 400]; await app.queuePrompt(0);")
    while not (new := set(server.get("/history")) - known):
        time.sleep(0.3)
    assert server.get("/history")[new.pop()]["status"]["status_str"] == "success"
    shown = page.script(
        "await new Promise(resolve => setTimeout(resolve, 3000)); app.canvas.setDirty(true, true);"
        "return (app.graph.nodes ?? app.graph._nodes).filter(node => node.imgs?.length || node.videoContainer)"
        ".map(node => node.type).sort();"
    )
    assert shown == ["PreviewImage", "VExpress_SampleToVideo"]
    if path := os.environ.get("SCREENSHOT"):
        page.screenshot(Path(path))


def test_a_missing_node_is_noticed(page, object_info):
    """That the tests above can fail."""
    workflow = json.loads((ROOT / "example_workflows" / "long_audio.json").read_text())
    workflow["nodes"][0]["type"] = "NobodyHasThis"
    found = page.script(LOAD, workflow)
    assert "NobodyHasThis" in found["missing"] and found["dialog"]
