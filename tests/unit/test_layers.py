"""A file imports only from lower layers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [
    ["vexpress.config", "vexpress.runtime"],
    ["vexpress.models", "vexpress.diffusion", "vexpress.audio_features", "vexpress.media"],
    ["vexpress.checkpoints", "vexpress.sampling", "vexpress.data"],
    ["vexpress.pipeline", "vexpress.training", "vexpress.evaluation"],
]
WITHIN = {  # importer -> what it may import of its own layer
    "vexpress.config": ["vexpress.runtime"],
    "vexpress.data": ["vexpress.checkpoints"],  # preparation runs the audio encoder and the VAE
    "vexpress.evaluation": ["vexpress.pipeline"],
}
FILES = sorted(path for path in (ROOT / "vexpress").rglob("*.py") if path != ROOT / "vexpress" / "__init__.py")


def part_of(module: str) -> tuple[int, str]:
    """The layer and the named part that a module belongs to."""
    for level, parts in enumerate(LAYERS):
        for part in parts:
            if module == part or module.startswith(f"{part}."):
                return level, part
    raise AssertionError(f"{module} stands in no layer")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("vexpress.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    level, part = part_of(module)
    for imported in imports(path):
        other_level, other = part_of(imported)
        allowed = other_level < level or other == part or other in WITHIN.get(part, [])
        assert allowed, f"{module} imports {imported}"


@pytest.mark.parametrize("path", [p for p in FILES if "models" in p.parts], ids=lambda path: path.stem)
def test_networks_know_no_files(path):
    banned = {"pathlib", "os", "yaml", "omegaconf", "logging", "json"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not banned & {name.split(".")[0] for name in names}
