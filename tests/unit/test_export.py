"""Model cards and `deploy.export`: what is written loads, and draws what the run's result draws."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard

from deploy import export
from deploy.report.card import card_text, method_of
from deploy.run.folder import RunFolder
from deploy.run.outcome import Outcome
from deploy.settings.run_config import RunConfig, load_config
from learner.policy.components import PipelineFolder
from learner.policy.trainable import save_for_diffusers, trainable_unet

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "configs"
PROMPT = "a red circle left of a blue square"
BEFORE, AFTER = {"exact_2step": 0.25}, {"exact_2step": 0.75, "reward|x": 1.0}

# What diffusers, transformers and peft say of each other's loaders is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def new_run(pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the folder of a finished run, as its driver leaves it.

    The adapter's alpha is not its rank, so that losing it would show.
    """

    def make(trainable: str) -> Path:
        models = (f"model.path={pipelines}/lcm", f"model.teacher={pipelines}/base")
        config = load_config(
            CONFIGS / "smoke.yaml",
            [*models, f"model.trainable={trainable}", "model.lora_alpha=32", "name=mine"],
        )
        folder = RunFolder(tmp_path_factory.mktemp("runs") / "mine")
        folder.open(config, resume=False)
        unet: Any = trainable_unet(PipelineFolder.locate(config.model.path), config.model, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in unet.parameters():
                if parameter.requires_grad:
                    # As large as the base's own: a wilder network makes much of every rounding.
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        exported = save_for_diffusers(unet, config.model.trainable, folder.path)
        done = Outcome(config, setup_s=0, status="finished", before=BEFORE, after=AFTER)
        done.exported, done.exported_version = str(exported), "last"
        folder.close(done)
        return folder.path

    return make


@pytest.fixture(scope="module")
def lora_run(new_run: Callable[[str], Path]) -> Path:
    return new_run("lora")


@pytest.fixture(scope="module")
def full_run(new_run: Callable[[str], Path]) -> Path:
    return new_run("full")


def drawn(pipeline: Any) -> np.ndarray:
    """Pictures [2, H, W, 3] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(n) for n in range(2)]
    return pipeline(
        [PROMPT] * 2, generator=noise, num_inference_steps=2, guidance_scale=1.0, output_type="np"
    ).images


def base(pipelines: Path, **parts: Any) -> Any:
    return DiffusionPipeline.from_pretrained(pipelines / "lcm", torch_dtype=torch.float32, **parts)


def test_a_merged_pipeline_draws_what_the_adapter_draws(
    lora_run: Path, pipelines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "whole"
    assert export.main([str(lora_run), "--out", str(out), "--merge"]) == 0
    merged = DiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32)
    assert not [name for name, _ in merged.unet.named_parameters() if "lora" in name]
    with_adapter = base(pipelines)
    untouched = drawn(with_adapter)
    with_adapter.load_lora_weights(lora_run / "adapter")
    expected = drawn(with_adapter)
    np.testing.assert_allclose(drawn(merged), expected, atol=1e-5)
    assert np.abs(untouched - expected).max() > 1e-2


def test_a_merged_pipeline_has_the_trained_unet(
    full_run: Path, pipelines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "whole"
    assert export.main([str(full_run), "--out", str(out), "--merge"]) == 0
    unet = UNet2DConditionModel.from_pretrained(full_run / "unet")
    merged = DiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32)
    np.testing.assert_allclose(drawn(merged), drawn(base(pipelines, unet=unet)), atol=1e-5)


def test_without_merge_the_result_is_copied_with_its_card(
    lora_run: Path, pipelines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    assert export.main([str(lora_run), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (lora_run / "adapter").iterdir()}
    pipeline = base(pipelines)
    pipeline.load_lora_weights(out)  # the card beside the weights is in nobody's way
    assert ModelCard.load(out / "README.md").data.to_dict()["library_name"] == "diffusers"


def test_what_is_in_the_way_or_missing_is_told(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert export.main([str(lora_run), "--out", str(tmp_path / "full")]) == 2
    assert "is there and not empty" in capsys.readouterr().err
    assert export.main([str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("form", "loads"), [("lora", "load_lora_weights"), ("full", "unet=unet")])
def test_a_finished_run_has_a_card_beside_its_result(
    request: pytest.FixtureRequest, form: str, loads: str
) -> None:
    run = request.getfixturevalue(f"{form}_run")
    card = ModelCard.load(run / ("adapter" if form == "lora" else "unet") / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert {"text-to-image", "reinforcement-learning", "lasro"} <= set(data["tags"])
    assert ("lora" in data["tags"]) == (form == "lora")
    assert data["inference"]["parameters"]["num_inference_steps"] == 2
    assert "license" not in data
    assert "base_model" not in data  # a folder is none that the hub knows
    assert loads in card.text
    assert "| `exact_2step` | 0.25 | 0.75 |" in card.text
    assert "| `reward\\|x` | – | 1 |" in card.text
    assert "arXiv:2411.15247" in card.text


def configured(preset: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / preset, ["name=mine", *overrides])


def test_a_base_model_of_the_hub_is_named_in_the_front_matter() -> None:
    config = configured("smoke.yaml", "model.path=owner/model", "replay.redis=redis://secret.host/")
    text = card_text(config, {}, "adapter", "it's a 'cat'")
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("owner/model", "adapter")
    assert "secret.host" not in text
    (settings,) = [block for block in text.split("```") if block.startswith("json\n")]
    assert json.loads(settings.removeprefix("json\n"))["model"]["path"] == "owner/model"
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("preset", "base", "told"),
    [
        (
            "ssd1b-lasro-pickscore.yaml",
            ["latent-consistency/lcm-ssd-1b", "segmind/SSD-1B"],
            "`segmind/SSD-1B` with the UNet of `latent-consistency/lcm-ssd-1b`, fine-tuned",
        ),
        (
            "sdxl-lcm-lasro-pickscore.yaml",
            ["stabilityai/stable-diffusion-xl-base-1.0", "latent-consistency/lcm-lora-sdxl"],
            "with `latent-consistency/lcm-lora-sdxl` fused into it, fine-tuned",
        ),
        ("turbo-lasro-pickscore.yaml", "stabilityai/sdxl-turbo", "`stabilityai/sdxl-turbo`, fine"),
    ],
)
def test_all_that_an_adapter_was_trained_from_is_named(
    preset: str, base: str | list[str], told: str
) -> None:
    text = card_text(configured(preset), {}, "adapter", "a cat")
    assert ModelCard(text).data.to_dict()["base_model"] == base
    assert told in text


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("shapes-ddpo.yaml", "DDPO"), ("shapes-ppo-kl.yaml", "PPO with a KL"),
        ("shapes-rlcm.yaml", "RLCM"), ("shapes-draft.yaml", "DRaFT-K"),
        ("shapes-draft-lv.yaml", "DRaFT-LV"), ("shapes-refl.yaml", "ReFL"),
        ("shapes-seiko.yaml", "SEIKO"), ("shapes-gors.yaml", "GORS"),
        ("shapes-dpo.yaml", "Diffusion-DPO"), ("shapes-pso.yaml", "PSO"),
        ("shapes-sqdf.yaml", "SQDF"), ("shapes-lasro.yaml", "LaSRO"),
    ],
)  # fmt: skip
def test_every_method_is_called_by_its_name(preset: str, name: str) -> None:
    assert method_of(configured(preset))[0] == name


def test_a_gradient_of_a_surrogate_is_not_called_the_rewards_own() -> None:
    config = configured("shapes-seiko.yaml", "method.surrogate.confidence=pessimistic")
    assert method_of(config)[0] == "DRaFT-K through a surrogate"


def code_of(preset: str, form: Any, *overrides: str) -> str:
    text = card_text(configured(preset, *overrides), {}, form, "a cat")
    return text.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("preset", sorted(path.name for path in CONFIGS.glob("*.yaml")))
@pytest.mark.parametrize("form", ["adapter", "unet", "pipeline"])
def test_the_code_of_every_presets_card_is_python(preset: str, form: str) -> None:
    compile(code_of(preset, form), "card", "exec")


def test_a_card_tells_of_no_service_and_no_machine() -> None:
    rewards = (
        "rewards={shown: {kind: shapes-binding}, there: {kind: http, args: "
        "{url: 'https://rewards.example/score', token_env: HOME}}, "
        "seen: {kind: clip-score, args: {clip: /secret/place}}}"
    )
    text = card_text(configured("shapes-rlcm.yaml", rewards), {}, "adapter", "a cat")
    assert "`shapes-binding`" in text
    assert "`http`" in text
    for private in ("rewards.example", "HOME", "/secret/place"):
        assert private not in text


def test_a_card_names_files_of_a_machine_and_not_their_places() -> None:
    distance = "{lpips: {kind: lpips, args: {backbone: /secret/alex.pth, heads: /secret/lin.pth}}}"
    given = (
        "prompts=/secret/mine.txt",
        "evaluation.prompts=/secret/held-out.jsonl",
        f"evaluation.diversity.distances={distance}",
    )
    text = card_text(configured("shapes-rlcm.yaml", *given), {}, "adapter", "a cat")
    assert "secret" not in text
    assert text.count("mine.txt") == 2
    assert "held-out.jsonl" in text


def test_a_cards_code_keeps_a_scheduler_of_few_steps_as_samplers_do() -> None:
    code = code_of("shapes-rlcm.yaml", "adapter")
    assert 'if told != ("trailing", "EulerAncestralDiscreteScheduler"):' in code
    fixed = code_of("shapes-rlcm.yaml", "adapter", "model.sampler=consistency")
    assert "if told" not in fixed


def test_a_cards_code_has_the_parts_that_the_run_drew_with() -> None:
    lcm = code_of("sdxl-lcm-lasro-pickscore.yaml", "adapter")
    lora, mine = (lcm.index(f"load_lora_weights({name}") for name in ("'latent", '"this folder'))
    assert lora < lcm.index("fuse_lora()") < lcm.index("LCMScheduler.from_config") < mine
    assert "if pipe.unet.config.time_cond_proj_dim else 1.0" in lcm
    distilled = code_of("ssd1b-lasro-pickscore.yaml", "adapter")
    assert "UNet2DConditionModel.from_pretrained('latent-consistency/lcm-ssd-1b')" in distilled
    many = code_of("shapes-sqdf.yaml", "pipeline", "model.height=32", "model.width=32")
    assert "scheduler" not in many
    assert "guidance = 1\n" in many
    assert "height=32, width=32" in many


def test_a_cards_code_says_where_in_a_pipeline_a_part_lies(
    pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = code_of("shapes-sqdf.yaml", "adapter", f"model.unet={pipelines}/lcm")
    assert f"from_pretrained('{pipelines}/lcm', subfolder=\"unet\")" in here
    part = code_of("shapes-sqdf.yaml", "adapter", f"model.vae={pipelines}/lcm/vae")
    assert f"from_pretrained('{pipelines}/lcm/vae')" in part
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--whole"
    (repository / "snapshots" / "1" / "unet").mkdir(parents=True)
    (repository / "snapshots" / "1" / "unet" / "config.json").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1")
    downloaded = code_of("shapes-sqdf.yaml", "adapter", "model.unet=owner/whole")
    assert "from_pretrained('owner/whole', subfolder=\"unet\")" in downloaded


def test_a_cards_code_loads_and_draws_the_result(lora_run: Path, pipelines: Path) -> None:
    text = (lora_run / "adapter" / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("this folder, or its id on the hub", str(lora_run / "adapter")), found)
    expected = base(pipelines)
    expected.load_lora_weights(lora_run / "adapter")
    np.testing.assert_allclose(drawn(found["pipe"]), drawn(expected), atol=1e-5)
    assert found["image"].size == (32, 32)
