"""`deploy.sample` on tiny untrained pipelines: grids, what a run changes, and clear errors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    UNet2DConditionModel,
)
from PIL import Image

from deploy import sample
from deploy.settings.run_config import config_from_json, load_config
from learner.policy.components import PipelineFolder
from learner.policy.trainable import save_for_diffusers, trainable_unet
from learner.settings.model import Model

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
PROMPT = "a red circle left of a blue square"

# What diffusers, transformers and peft say of each other's loaders is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def new_run(pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a run's folder, perhaps without a result.

    The adapter's alpha is not its rank, so that losing it would show.
    """

    def make(trainable: str = "lora", *, ended: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("run")
        models = (f"model.path={pipelines}/lcm", f"model.teacher={pipelines}/base")
        config = load_config(
            SMOKE, [*models, f"model.trainable={trainable}", "model.lora_alpha=32", "name=n"]
        )
        (folder / "config.json").write_text(config.to_json())
        if ended:
            unet = _trained(config.model)
            save_for_diffusers(unet, config.model.trainable, folder)
        return folder

    return make


def _trained(model: Model) -> UNet2DConditionModel:
    unet = trainable_unet(PipelineFolder.locate(model.path), model, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return unet


@pytest.fixture(scope="module")
def run(new_run: Callable[..., Path]) -> Path:
    return new_run()


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def _draw(source: Path, out: Path, *options: str) -> np.ndarray:
    assert sample.main([str(source), "--prompt", PROMPT, "--out", str(out), *options]) == 0
    return _pixels(out)


def test_the_grid_has_a_row_for_each_prompt_and_a_column_for_each_picture() -> None:
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    sheet = sample.grid([[red, blue, red], [blue, red, blue]], ["first", "second"])
    at = {(x, y): sheet.getpixel((x, y)) for x in (60, 200) for y in (80, 230)}
    assert [at[60, 80], at[200, 80]] == [(255, 0, 0), (0, 0, 255)]
    assert [at[60, 230], at[200, 230]] == [(0, 0, 255), (255, 0, 0)]


def test_a_prompt_without_room_is_shortened() -> None:
    assert sample._shortened("a red circle", lambda text: len(text), 6) == "a red…"


def test_a_run_draws_other_pictures_than_it_began_with(run: Path, tmp_path: Path) -> None:
    after = _draw(run, tmp_path / "after.png", "--count", "1")
    before = _draw(run, tmp_path / "before.png", "--count", "1", "--before")
    assert after.shape == before.shape
    assert np.abs(after - before).mean() > 1


def test_before_is_the_untouched_pipeline_in_the_runs_steps(
    run: Path, pipelines: Path, tmp_path: Path
) -> None:
    before = _draw(run, tmp_path / "before.png", "--count", "1", "--before")
    options = ("--count", "1", "--steps", "2", "--guidance", "4")
    assert (before == _draw(pipelines / "lcm", tmp_path / "lcm.png", *options)).all()


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_a_run_draws_with_exactly_what_it_trained(
    trainable: str, new_run: Callable[..., Path]
) -> None:
    folder = new_run(trainable)
    config = config_from_json((folder / "config.json").read_text())
    pipeline = sample.load(sample.find_source(folder, before=False))
    inputs = (torch.ones(1, 4, 8, 8), 499, torch.ones(1, 18, 64))
    guidance = torch.ones(1, 64)
    with torch.no_grad():
        drawn = pipeline.unet(*inputs, timestep_cond=guidance).sample
        trained = _trained(config.model)(*inputs, timestep_cond=guidance).sample
    torch.testing.assert_close(drawn, trained, rtol=1e-4, atol=1e-4)


def test_a_column_has_the_same_noise_however_many_there_are(
    pipelines: Path, tmp_path: Path
) -> None:
    one = _draw(pipelines / "base", tmp_path / "1.png", "--steps", "2", "--count", "1")
    two = _draw(pipelines / "base", tmp_path / "2.png", "--steps", "2", "--count", "2")
    first = np.s_[20:140, 10:130]
    assert np.abs(one[first] - two[first]).max() <= 1


def test_another_seed_draws_another_picture(pipelines: Path, tmp_path: Path) -> None:
    options = ("--steps", "1", "--count", "1", "--seed")
    first, second = (
        _draw(pipelines / "lcm", tmp_path / f"{seed}.png", *options, seed) for seed in ("0", "1")
    )
    assert (first != second).any()


def test_prompts_come_from_a_file_too(pipelines: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\na white cross below a red square\n")
    arguments = [str(pipelines / "lcm"), "--prompts", str(tmp_path / "prompts.txt"), "--steps", "1"]
    assert sample.main([*arguments, "--count", "1", "--out", str(tmp_path / "new" / "a.png")]) == 0
    assert _pixels(tmp_path / "new" / "a.png").shape[0] == 2 * (128 + 18 + 4)


def _complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What stderr says of a call that is refused."""
    assert sample.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


OUT = ("--prompt", PROMPT, "--out", "never-written.png")


def test_a_missing_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no/such/run is no folder" in _complaint(capsys, "no/such/run", *OUT)


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "neither a run's folder" in _complaint(capsys, tmp_path, *OUT)


def test_no_prompt_is_refused(pipelines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = _complaint(capsys, pipelines / "lcm", "--prompt", " ", "--out", "never.png")
    assert text.startswith("no prompt: give --prompt")


def test_more_steps_than_the_model_knows_are_refused(
    pipelines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _complaint(capsys, pipelines / "lcm", *OUT, "--steps", "51")
    assert text.startswith("51 steps are not possible: LCMScheduler of this model takes at most 50")


def test_no_step_at_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sample.main(["anywhere", *OUT, "--steps", "0"])
    assert "--steps: must be at least 1, given 0" in capsys.readouterr().err


def test_a_run_without_a_result_is_refused(
    new_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = _complaint(capsys, new_run(ended=False), *OUT)
    assert "has no result yet" in text
    assert "--before" in text


def test_a_pipeline_has_no_before(pipelines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a pipeline" in _complaint(capsys, pipelines / "lcm", *OUT, "--before")


def test_an_ending_that_is_no_picture_is_refused(
    pipelines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _complaint(capsys, pipelines / "lcm", "--prompt", PROMPT, "--out", "grid.pdf")
    assert text.startswith("--out grid.pdf is no picture's name")


def test_a_config_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "config.json is not a run's config" in _complaint(capsys, tmp_path, *OUT)


def test_a_broken_pipeline_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "cannot load the pipeline" in _complaint(capsys, tmp_path, *OUT)
