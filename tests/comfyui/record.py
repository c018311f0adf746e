"""Records what a real ComfyUI says of the nodes.

COMFYUI_DIR=... COMFYUI_PYTHON=... python -m tests.comfyui.record
"""

import json
import os
import tempfile
from pathlib import Path

from tests.comfyui.server import ROOT, Server

RECORD = ROOT / "tests" / "data" / "comfyui" / "object_info.json"
FACTS = (
    *("input", "input_order", "output", "output_name", "output_tooltips", "name", "display_name", "description"),
    *("category", "output_node", "deprecated"),
)


def our_nodes(object_info: dict) -> dict[str, dict]:
    """What is recorded of our nodes."""
    ours = {name: info for name, info in object_info.items() if info["python_module"] == "custom_nodes.vexpress"}
    return {name: {fact: ours[name][fact] for fact in FACTS} for name in sorted(ours)}


def main() -> None:
    with tempfile.TemporaryDirectory() as base_dir:
        server = Server(Path(os.environ["COMFYUI_DIR"]), Path(os.environ["COMFYUI_PYTHON"]), Path(base_dir))
        try:
            nodes = our_nodes(server.get("/object_info"))
        finally:
            server.stop()
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(nodes, indent=1) + "\n")


if __name__ == "__main__":
    main()
