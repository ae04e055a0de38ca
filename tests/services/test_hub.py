"""A model by its hub id: downloaded by the hub's own client, what is read of it, and once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from diffusers import UNet2DConditionModel
from torch import nn

from deploy.doctor.hub import lacking
from learner.policy.components import PipelineFolder
from learner.policy.whole import whole_pipeline
from learner.settings.model import Model
from tests.services.hub_server import model_hub
from tests.tiny_sdxl import save_sdxl

_ID = "someone/turbo"
_PARTS = {
    *("unet", "vae", "scheduler"),
    *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
}
_FIND = """
import sys
from learner.policy.sources import local_folder, part_folder
if sys.argv[2:]:
    print(part_folder(sys.argv[1], sys.argv[2]))
else:
    print(local_folder(sys.argv[1], holds="a model_index.json", whole_pipeline=True))
"""


def halved(folder: Path, *, alone: bool) -> None:
    """Lays a UNet's weights down in half precision, beside the others or in their place."""
    unet = UNet2DConditionModel.from_pretrained(folder)
    if alone:
        (folder / "diffusion_pytorch_model.safetensors").unlink()
    unet.half().save_pretrained(folder, variant="fp16")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A repository as those of SDXL are: half precision beside full, and other programs' files."""
    base, _ = save_sdxl(tmp_path)
    folder = tmp_path / "hub" / _ID
    folder.parent.mkdir(parents=True)
    base.rename(folder)
    halved(folder / "unet", alone=False)
    for other in (
        "README.md",
        "sd_xl_turbo.safetensors",
        "vae_1_0/diffusion_pytorch_model.safetensors",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "text_encoder/openvino_model.bin",
        "text_encoder/flax_model.msgpack",
    ):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"not for diffusers")
    return tmp_path / "hub"


def find(address: str, home: Path, *named: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Finds a model in a process of its own, since the client reads its environment once."""
    told = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", _FIND, *named]
    return subprocess.run(
        command, env={**told, **environ}, capture_output=True, text=True, check=False, timeout=120
    )


def found_by(*processes: subprocess.CompletedProcess[str]) -> Path:
    """The folder that all of them found."""
    for each in processes:
        assert each.returncode == 0, each.stderr
    (path,) = {each.stdout.strip() for each in processes}
    return Path(path)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(mine[k].equal(theirs[k]) for k in mine)


def test_a_pipeline_is_downloaded_without_what_is_not_read_and_found_again(
    hub: Path, tmp_path: Path
) -> None:
    home, there = tmp_path / "home", hub / _ID
    with model_hub(hub) as (address, sent):
        first = find(address, home, _ID)
        once = list(sent)
        again = find(address, home, _ID)
        offline = find(address, home, _ID, HF_HUB_OFFLINE="1")
    gone = find(address, home, _ID)
    found = found_by(first, again, offline, gone)
    assert sent == once
    assert lacking(home / "hub", _ID) is None
    assert files_of(found) == {"model_index.json", *_read_of(there)}
    pipeline, own = PipelineFolder(found), PipelineFolder(there)
    assert same_weights(pipeline.unet(), own.unet())
    assert same_weights(pipeline.vae(), own.vae())
    states = [each.prompt_encoder()(["a cat"]).states_BLE for each in (pipeline, own)]
    assert states[0].equal(states[1])


def test_the_doctor_tells_what_an_earlier_partial_download_lacks(hub: Path, tmp_path: Path) -> None:
    fetch = (
        "import sys, huggingface_hub as hub\n"
        "hub.snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:])"
    )
    home, patterns = tmp_path / "home", ["model_index.json", "vae/*", "unet/*.json"]
    with model_hub(hub) as (address, _):
        environ = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home)}
        subprocess.run([sys.executable, "-c", fetch, _ID, *patterns], env=environ, check=True)
    assert lacking(home / "hub", _ID) == f"a file of weights in unet/ of {_ID}"


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _read_of(pipeline: Path) -> set[str]:
    """Files of its parts that diffusers reads in full precision."""
    files = map(PurePosixPath, files_of(pipeline))
    return {
        str(file)
        for file in files
        if str(file.parent) in _PARTS
        and file.suffix in (".json", ".txt", ".safetensors")
        and not any(word in file.name for word in ("fp16", "non_ema"))
    }


def test_what_a_pipeline_names_and_no_picture_needs_may_be_missing(
    hub: Path, tmp_path: Path, pipelines: Path
) -> None:
    """As Stable Diffusion 1.5 names a safety checker, which is larger than its text encoder."""
    there = hub / "someone" / "sd15"
    shutil.copytree(pipelines / "base", there)
    index = json.loads((there / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    (there / "model_index.json").write_text(json.dumps(index))
    for part in ("safety_checker", "feature_extractor"):
        (there / part).mkdir()
        (there / part / "config.json").write_text("{}")
    with model_hub(hub) as (address, _):
        found = found_by(find(address, tmp_path / "home", "someone/sd15"))
    assert not (found / "safety_checker").exists()
    pipeline = whole_pipeline(Model(path=str(found), num_steps=50))
    assert pipeline.safety_checker is None
    assert same_weights(pipeline.unet, PipelineFolder(there).unet())


def test_weights_that_are_there_in_half_precision_alone_are_read(hub: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    halved(hub / _ID / "unet", alone=True)
    with model_hub(hub) as (address, _):
        first = find(address, home, _ID)
        offline = find(address, home, _ID, HF_HUB_OFFLINE="1")
    pipeline = PipelineFolder(found_by(first, offline))
    assert same_weights(pipeline.unet(), PipelineFolder(hub / _ID).unet())


def test_a_unet_may_be_a_repository_of_its_own(hub: Path, tmp_path: Path) -> None:
    own = hub / "someone" / "unet"
    (hub / _ID / "unet").rename(own)
    with model_hub(hub) as (address, sent):
        found = found_by(find(address, tmp_path / "home", "someone/unet", "unet"))
    assert sorted(sent) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert lacking(tmp_path / "home" / "hub", "someone/unet") is None
    assert same_weights(
        UNet2DConditionModel.from_pretrained(found), UNet2DConditionModel.from_pretrained(own)
    )


@pytest.mark.parametrize("offline", ["0", "1"])
def test_what_the_hub_does_not_have_is_told(hub: Path, tmp_path: Path, offline: str) -> None:
    with model_hub(hub) as (address, _):
        found = find(address, tmp_path / "home", "nobody/nothing", HF_HUB_OFFLINE=offline)
    assert found.returncode == 1
    assert "ValueError: no model at 'nobody/nothing': it is not a folder here" in found.stderr
    assert "Give a folder with a model_index.json or a hub id" in found.stderr
