"""The Dockerfile agrees with the repository: what it copies, installs, pins and checks."""

import fnmatch
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deploy.settings.run_config import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Word and rest of every instruction, continued lines joined."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def copied() -> list[str]:
    """Paths of the repository that get into the image."""
    here = [rest.split() for rest in of("COPY") if not rest.startswith("--from")]
    return [source for words in here for source in words[:-1]]


def python_code(marker: str) -> str:
    """The `python -c` of the instruction that holds a marker."""
    (run,) = (rest for rest in of("RUN") if marker in rest)
    words = shlex.split(run)
    return words[words.index("-c", words.index("python")) + 1]


def test_everything_that_is_copied_is_there_and_no_ignore_file_keeps_it_out() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    kept_out = [rule for rule in rules if rule and rule[0] not in "#!" and rule != "*"]
    assert "*" in rules
    assert set(copied()) == let_in
    for path in copied():
        assert (ROOT / path).exists()
        assert not any(fnmatch.fnmatch(path, rule) for rule in kept_out)


def test_every_package_is_copied() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(copied())


def test_nothing_is_installed_that_the_constraints_do_not_pin() -> None:
    installs = re.findall(r"pip install ([^&]*)", "\n".join(of("RUN")))
    assert len(installs) == 3
    for words in map(str.split, installs):
        assert "--no-deps" in words or words[:2] == ["-c", "constraints.txt"]


@pytest.mark.parametrize("need", PROJECT["dependencies"])
def test_every_dependency_is_pinned_within_its_range(need: str) -> None:
    asked = Requirement(need)
    (pin,) = re.findall(rf"^{re.escape(asked.name)}==(\S+)$", CONSTRAINTS, re.M)
    assert asked.specifier.contains(pin)


def test_the_base_is_one_exact_python_that_the_project_allows() -> None:
    (image,) = (rest.partition("=")[2] for rest in of("ARG") if rest.startswith("PYTHON_IMAGE="))
    version = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+", image)
    assert version
    assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])
    assert all(rest.startswith("${PYTHON_IMAGE} AS ") for rest in of("FROM"))


def test_the_image_tells_the_version_of_the_project() -> None:
    told = re.search(r'image\.version="([^"]+)"', TEXT)
    assert told
    assert told[1] == PROJECT["version"]
    assert set(re.findall(r"-t fleetune:([\d.]+)-", TEXT)) == {PROJECT["version"]}


def test_no_process_of_the_image_is_root() -> None:
    last = [rest for name, rest in instructions() if name in {"FROM", "USER"}][-1]
    user, _, group = last.partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert f"useradd --uid {user}" in TEXT
    assert f"groupadd --gid {group}" in TEXT


def test_ray_tells_nobody_of_its_use() -> None:
    assert "RAY_USAGE_STATS_ENABLED=0" in of("ENV")[-1]


def test_the_list_of_needs_is_the_projects_own() -> None:
    command = [sys.executable, "-c", python_code("tomllib")]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == PROJECT["dependencies"]


@pytest.mark.parametrize(
    ("variant", "cuda", "status"),
    [("cuda", "'13.0'", 0), ("cpu", "None", 0), ("cuda", "None", 1), ("cpu", "'13.0'", 1)],
)
def test_another_torch_than_the_variant_says_ends_the_build(
    variant: str, cuda: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(f"class version:\n    cuda = {cuda}\n")
    code = python_code("torch.version.cuda").replace("${VARIANT}", variant)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert ("TORCH_ARGS" in done.stderr) == bool(status)


def test_the_check_that_ends_the_build_is_of_a_config_that_loads() -> None:
    (check,) = (rest for rest in of("RUN") if "--check" in rest)
    words = shlex.split(check)
    assert words[:4] == ["python", "-m", "deploy.launch", "--check"]
    assert load_config(ROOT / words[4], words[5:]).folder == "/tmp/checked"


@pytest.mark.parametrize("library", ["ray", "torch"])
def test_ray_and_torch_are_those_of_the_tests(library: str) -> None:
    (pin,) = re.findall(rf"^{library}==(\S+)$", CONSTRAINTS, re.M)
    assert Version(importlib.metadata.version(library)).public == pin


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_image_lacks_is_told() -> None:
    page = (ROOT / "reward_servers" / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(
        r"The image of \[deploy/docker\].*?does not hold.*?\.\n\n", page, re.DOTALL
    )
    for extra in PROJECT["optional-dependencies"].keys() - {"test"}:
        assert f"`{extra}`" in told
        assert not re.search(rf"\[[\w,]*\b{extra}\b", TEXT)
    assert "image-reward" not in TEXT
