"""Every page of the repository is true: what it links to, names or calls is there."""

import importlib.util
import re
from pathlib import Path

import pytest

from deploy.settings.table import schema_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not {"runs", "build"} & set(path.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES]
)


def _without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def _slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _source(module: str) -> str:
    """Of a module, or of all in a package."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    file = Path(spec.origin)
    files = file.parent.rglob("*.py") if file.name == "__init__.py" else [file]
    return "".join(each.read_text(encoding="utf-8") for each in files)


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", _without_code(text)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            lines = _without_code(target.read_text(encoding="utf-8")).splitlines()
            assert anchor in {_slug(line.lstrip("# ")) for line in lines if line[:1] == "#"}, link


@each_page
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = re.findall(
        r"\b(?:deploy|reward_servers|tests|actors|learner|buffer)/[\w./-]+\.(?:yaml|py|txt|json)",
        page.read_text(encoding="utf-8"),
    )
    assert [path for path in sorted(set(named)) if not (ROOT / path).exists()] == []


@each_page
def test_every_command_is_there_with_its_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for module, rest in re.findall(r"python -m ([\w.]+)([^\n`|]*)", text):
        if module.partition(".")[0] != "deploy":
            assert importlib.util.find_spec(module), module
            continue
        source = _source(module) + '"--help"'  # argparse brings it
        for option in re.findall(r"(?<=\s)--[a-z][\w-]*", rest.partition(" -- ")[0]):
            assert f'"{option}"' in source, f"python -m {module} has no {option}"


@each_page
def test_every_make_target_is_there(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), flags=re.MULTILINE)
    assert set(named) - set(targets) == set()


def test_every_preset_is_in_the_table_of_presets() -> None:
    folder = ROOT / "deploy" / "configs"
    table = (folder / "README.md").read_text(encoding="utf-8").partition("## Settings")[0]
    assert [p.name for p in sorted(folder.glob("*.yaml")) if f"`{p.name}`" not in table] == []


def test_the_table_of_settings_is_the_codes_own() -> None:
    page = (ROOT / "deploy" / "configs" / "README.md").read_text(encoding="utf-8")
    assert page.endswith(schema_table().strip() + "\n"), (
        "put what `python -m deploy.launch --schema` prints at the end of deploy/configs/README.md"
    )
