"""The docs' tables are those of the code, and what they show runs.

`python -m tests.unit.test_docs` writes the tables.
"""

import dataclasses
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from vexpress.cli.main import PROGRAMS
from vexpress.dubbing.settings import DubSettings
from vexpress.fields import allowed_values, kind_of
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.prepare.settings import PrepareSettings
from vexpress.training.config import TrainConfig
from vexpress.training.head_motion import HeadMotionConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _rows(fields: Iterable[dataclasses.Field], prefix: str, is_key: bool) -> list[str]:
    rows = []
    for field in fields:
        if dataclasses.is_dataclass(field.type):
            rows += _rows(dataclasses.fields(field.type), f"{prefix}{field.name}.", is_key)
        elif "help" in field.metadata:
            value = field.default
            if value is dataclasses.MISSING:
                value = field.default_factory()
            off = kind_of(field) is bool and value and not is_key
            name = f"`{prefix}{field.name}`" if is_key else f"`--{'no_' * off}{field.name}`"
            default = "" if value is None else "on" if value is True else "off" if value is False else value
            allowed = "" if kind_of(field) in (bool, str) and not field.metadata["choices"] else allowed_values(field)
            unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
            rows.append(f"| {name} | {default}{unit if default != '' else ''} | {allowed} | {field.metadata['help']} |")
    return rows


def table(*classes: type, prefix: str = "", is_key: bool = False) -> str:
    """A Markdown table of options, a row each."""
    header = [f"| {'key' if is_key else 'flag'} | default | allowed | what it does |", "|---|---|---|---|"]
    return "\n".join([*header, *(row for c in classes for row in _rows(dataclasses.fields(c), prefix, is_key))])


TABLES = {
    ("docs/inference.md", "options"): lambda: table(SamplingOptions, MotionOptions),
    ("docs/dub.md", "dub"): lambda: table(DubSettings),
    ("docs/data.md", "prepare"): lambda: table(PrepareSettings),
    ("docs/motion.md", "motion"): lambda: table(HeadMotionConfig, is_key=True),
    ("docs/training.md", "training"): lambda: table(TrainConfig, is_key=True),
}


def _marked(text: str, name: str) -> re.Match:
    return re.search(rf"(<!-- {name}: .*? -->\n)(.*?)(<!-- end of {name} -->)", text, re.DOTALL)


def write_tables() -> None:
    """Brings the tables of all pages up to date."""
    for (page, name), build in TABLES.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        match = _marked(text, name)
        path.write_text(text[: match.start(2)] + build() + "\n" + text[match.end(2) :], encoding="utf-8")


@pytest.mark.parametrize(("page", "name"), TABLES, ids=lambda part: part)
def test_tables_are_those_of_the_code(page, name):
    found = _marked((ROOT / page).read_text(encoding="utf-8"), name)[2].strip()
    assert found == TABLES[page, name](), "run: python -m tests.unit.test_docs"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in anchors, f"{page.name}: {target}"


def test_commands_of_the_docs_exist():
    for page in PAGES:
        for words in re.findall(r"^vexpress ([a-z-]+(?: [a-z]+)?)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert {words, words.split()[0]} & PROGRAMS.keys(), f"{page.name}: vexpress {words}"
        for script in re.findall(r"python ((?:scripts|inference|train)[\w/]*\.py)", page.read_text(encoding="utf-8")):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"
        for module in re.findall(r"python -m (scripts[\w.]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{page.name}: {module}"


CODE = re.findall(r"<!-- run by .*? -->\n```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", CODE, ids=range(len(CODE)))
def test_the_code_of_the_api_page_runs(code, tmp_path, monkeypatch):
    """As written, in an empty folder that sees the package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vexpress").symlink_to(ROOT / "vexpress")
    exec(compile(code, "docs/api.md", "exec"), {})  # noqa: S102
    assert "write_video(" not in code or (tmp_path / "talking.mp4").stat().st_size > 10_000


if __name__ == "__main__":
    sys.exit(write_tables())
