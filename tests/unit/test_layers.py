"""A file imports only from lower layers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [
    ["vexpress.errors"],
    ["vexpress.devices", "vexpress.fields", "vexpress.files", "vexpress.logs"],
    ["vexpress.model_folder", "vexpress.storage"],
    ["vexpress.audio_encoders", "vexpress.options"],
    ["vexpress.audio_features", "vexpress.diffusion", "vexpress.media", "vexpress.models"],
    ["vexpress.provenance", "vexpress.unused", "vexpress.weights"],
    ["vexpress.network_files"],
    ["vexpress.syncnet"],
    ["vexpress.data"],
    ["vexpress.pipeline", "vexpress.prepare", "vexpress.request", "vexpress.training"],
    ["vexpress.benchmarks", "vexpress.dubbing", "vexpress.evaluation"],
    ["vexpress.server"],
    ["vexpress.cli", "vexpress.comfyui"],
    ["inference", "scripts", "train", "vexpress.__main__"],
]
"""The lowest first. A part imports from lower layers and from itself."""
FRONT = ROOT / "vexpress" / "__init__.py"  # lazy, and so in no layer
FILES = sorted(
    path
    for place in ("vexpress", "scripts", "inference.py", "train.py")
    for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    if path != FRONT
)
LIGHT = [
    "errors",
    "fields",
    "files",
    "logs",
    "model_folder",
    "options",
    "benchmarks.settings",
    "dubbing.settings",
    "evaluation.settings",
    "prepare.settings",
    "unused",
]
"""Modules that flags are made of: they must not import torch."""


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
            assert not node.level, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("vexpress", "scripts", "inference", "train", "tests")}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    module = module_of(path)
    level, part = part_of(module)
    for imported in imports(path):
        other_level, other = part_of(imported)
        assert other_level < level or other == part, f"{module} imports {imported}"


def test_every_part_is_there():
    modules = {module_of(path) for path in FILES}
    for part in (part for parts in LAYERS for part in parts):
        assert any(module == part or module.startswith(f"{part}.") for module in modules), part


@pytest.mark.parametrize("path", [p for p in FILES if "models" in p.parts], ids=lambda path: path.stem)
def test_networks_know_no_files(path):
    banned = {"pathlib", "os", "yaml", "omegaconf", "logging", "json"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not banned & {name.split(".")[0] for name in names}


def test_no_program_edits_the_path():
    for path in FILES:
        assert "sys.path." not in path.read_text(), path


@pytest.mark.parametrize(
    "folder", ["comfyui", "data", "diffusion", "evaluation", "media", "models", "prepare", "training"]
)
def test_unit_tests_mirror_the_package(folder):
    for path in (ROOT / "tests" / "unit" / folder).glob("test_*.py"):
        names = [module.stem for module in (ROOT / "vexpress" / folder).glob("*.py")]
        assert any(path.stem.removeprefix("test_").startswith(name) for name in names) or path.stem in GENERAL, path


GENERAL = {"test_networks", "test_measures"}
"""Tests of several modules of a folder at once."""
