"""Help pages of nodes, written from their declarations: python -m tests.unit.comfyui.help_pages"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.unit.comfyui import stub

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "vexpress" / "comfyui" / "web" / "docs"

HEADINGS = {
    "en": ("Inputs", "input", "type", "default", "what it does", "Outputs", "output"),
    "zh": ("输入", "输入", "类型", "默认值", "说明", "输出", "输出"),
}


def help_page(info: dict[str, Any], words: dict[str, Any], language: str) -> str:
    """One page.

    Args:
        info: what /object_info says of the node.
        words: of another language than English, as in locales/; may be empty.
        language: key of `HEADINGS`.
    """
    inputs_title, name, kind, default, meaning, outputs_title, output = HEADINGS[language]
    lines = [f"# {words.get('display_name', info['display_name'])}", "", words.get("description", info["description"])]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    if inputs:
        lines += ["", f"## {inputs_title}", "", f"| {name} | {kind} | {default} | {meaning} |", "|---|---|---|---|"]
    for one, (io_type, facts) in inputs.items():
        tip = words.get("inputs", {}).get(one, {}).get("tooltip", facts.get("tooltip", ""))
        value = facts.get("default", "")
        lines.append(f"| `{one}` | {io_type} | {value if value == '' else f'`{value}`'} | {tip} |")
    if info["output"]:
        lines += ["", f"## {outputs_title}", "", f"| {output} | {kind} |", "|---|---|"]
        lines += [f"| `{one}` | {io_type} |" for one, io_type in zip(info["output_name"], info["output"])]
    return "\n".join(lines) + "\n"


def help_pages(schemas: dict[str, stub.Schema]) -> dict[Path, str]:
    """All pages by path."""
    made = {}
    for language in HEADINGS:
        path = ROOT / "locales" / language / "nodeDefs.json"
        words = json.loads(path.read_text()) if path.is_file() else {}
        for name, schema in schemas.items():
            made[DOCS / name / f"{language}.md"] = help_page(schema.info(), words.get(name, {}), language)
    return made


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, stub.installed(folder):
        for path, text in help_pages(stub.declared_nodes()).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
