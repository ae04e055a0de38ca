"""What is planned from shapes: published sizes, counts by hand, and what settings change."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy.doctor.meta_counts import flops_of, kept_by, peak_of
from deploy.doctor.meta_networks import (
    Networks,
    architecture,
    architecture_of,
    parameters_of,
    unet_on_meta,
)
from deploy.doctor.size_plan import optimizer_bytes, size_plan
from deploy.doctor.size_rows import GraphRows, graph_rows, surrogate_rows
from deploy.settings.run_config import RunConfig, load_config
from deploy.shapes.models import PIPELINES
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.precision import roundable
from learner.policy.text import Text
from learner.policy.trainable import make_trainable
from learner.settings.model import Model

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "configs"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SSD_1B = "segmind/SSD-1B"
# A narrower clip would not let bf16 pass.
_BF16 = ("model.precision=bf16", "method.ratio_clip=0.1")
BASE, LCM = str(PIPELINES / "base"), str(PIPELINES / "lcm")


def _config(preset: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / f"{preset}.yaml", ["name=n", *overrides])


@cache
def _plan(preset: str, *overrides: str) -> dict[str, Any]:
    return size_plan(_config(preset, *overrides))


@pytest.fixture(scope="module")
def sd15() -> Networks:
    return Networks(_config("sd15-sqdf-hps"))


@pytest.mark.parametrize(
    ("hub_id", "millions"),
    [
        (SD15, 859.52),
        (SDXL, 2567.46),
        ("stabilityai/sdxl-turbo", 2567.46),
        (SSD_1B, 1331.0),
        ("latent-consistency/lcm-ssd-1b", 1331.0),
    ],
)
def test_a_unet_has_as_many_parameters_as_is_published(hub_id: str, millions: float) -> None:
    unet = unet_on_meta(architecture(hub_id), Model(path=hub_id))
    assert parameters_of(unet) / 1e6 == pytest.approx(millions, rel=0.0005)
    assert {parameter.device.type for parameter in unet.parameters()} == {"meta"}


def test_the_lcm_of_ssd_1b_takes_its_guidance_as_an_input() -> None:
    sizes = [
        parameters_of(unet_on_meta(architecture(name), Model(path=name)))
        for name in (SSD_1B, "latent-consistency/lcm-ssd-1b")
    ]
    assert sizes[1] - sizes[0] == 256 * 320


def test_parts_of_other_repositories_take_the_place_of_the_pipelines() -> None:
    model = Model(
        path=SSD_1B,
        unet="latent-consistency/lcm-ssd-1b",
        vae="madebyollin/sdxl-vae-fp16-fix",
    )
    found = architecture_of(model)
    assert found.unet["time_cond_proj_dim"] == 256
    assert found.text_encoders == architecture(SSD_1B).text_encoders
    assert found.vae["scaling_factor"] == 0.13025
    own = architecture_of(Model(path=SD15, unet=f"{BASE}/unet", vae=BASE))
    assert own.unet["cross_attention_dim"] == 64
    assert own.vae == architecture(BASE).vae


def test_a_vae_alone_is_no_pipeline() -> None:
    with pytest.raises(ValueError, match=r"^model.path: 'madebyollin/sdxl-vae-fp16-fix'"):
        architecture("madebyollin/sdxl-vae-fp16-fix")


def test_pictures_of_another_size_have_latents_of_another_size() -> None:
    networks = Networks(_config("shapes-gors", "model.height=64", "model.width=40"))
    assert networks.latents(3).shape == (3, 4, 16, 10)


@pytest.mark.slow
def test_offloaded_state_is_on_the_host_alone() -> None:
    zero = ("model.guidance_scale=1", "learner.zero_stage=1")
    plain, moved = (
        _plan("shapes-ddpo", *zero, *more)["bytes"]["learner"]
        for more in ((), ("learner.offload=cpu",))
    )
    assert "optimizer" not in moved
    assert moved["optimizer_on_host"] == plain["optimizer"]
    assert plain["optimizer_on_host"] == 0
    assert plain["total"] - moved["total"] == plain["optimizer"]


def test_vae_and_text_encoder_have_as_many_parameters_as_is_published(sd15: Networks) -> None:
    assert parameters_of(sd15.vae) / 1e6 == pytest.approx(83.65, rel=0.005)
    assert sd15.text_encoder_params / 1e6 == pytest.approx(123.06, rel=0.005)


def test_a_lora_of_sd15_has_as_many_parameters_as_is_published(sd15: Networks) -> None:
    # 797,184 of rank 4 on the attention projections, as diffusers' first LoRA example had it.
    assert parameters_of(sd15.policy, trained=True) == 8 * 797_184


def test_a_residual_block_costs_its_two_convolutions_and_its_time_projection(
    sd15: Networks,
) -> None:
    block: Any = sd15.base.mid_block.resnets[0]  # pyright: ignore
    x, time = torch.empty(1, 1280, 8, 8, device="meta"), torch.empty(1, 1280, device="meta")
    by_hand = 2 * (2 * 8 * 8 * 1280 * 1280 * 3 * 3 + 1280 * 1280)
    with torch.no_grad():
        assert flops_of(lambda: block(x, time)) == by_hand


def test_a_forward_pass_of_sd15_costs_the_published_products_and_its_attention(
    sd15: Networks,
) -> None:
    # BK-SDM (arXiv:2305.15798) has 339 G multiplications with weights at 64 × 64. Attention, by
    # its number of layers, tokens and width: two products each with itself and with 77 tokens.
    layers = [(5, 4096, 320), (5, 1024, 640), (5, 256, 1280), (1, 64, 1280)]
    attention = sum(4 * n * tokens * (tokens + 77) * width for n, tokens, width in layers)
    with torch.no_grad():
        flops = flops_of(lambda: sd15.ask(sd15.base, sd15.latents(1)))
    assert (flops - attention) / 2 == pytest.approx(339e9, rel=0.002)
    assert flops / 1e12 == pytest.approx(0.803, rel=0.001)


def test_decoding_512_pixels_costs_what_convolutions_of_the_decoder_do(sd15: Networks) -> None:
    convolutions: list[int] = []

    def note(module: Any, given: Any, output: torch.Tensor) -> None:
        convolutions.append(2 * output[0].numel() * module.weight[0].numel())

    hooks = [
        module.register_forward_hook(note)
        for module in sd15.vae.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        flops = flops_of(lambda: sd15.decode(sd15.latents(1)))
    for hook in hooks:
        hook.remove()
    # One attention layer of width 512 on 64 × 64 tokens, and its four projections.
    attention = 4 * 4096 * 4096 * 512 + 4 * 2 * 4096 * 512 * 512
    assert flops == sum(convolutions) + attention


def test_a_graph_keeps_the_inputs_of_what_has_a_gradient() -> None:
    with torch.device("meta"):
        network, x = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2)), torch.empty(3, 4)
    kept = kept_by(network, lambda: network(x))
    assert kept.activations == 4 * 3 * (4 + 8 + 8)
    assert kept.weights == 0


def test_what_two_layers_share_is_counted_once() -> None:
    with torch.device("meta"):
        network, x = nn.ModuleList([nn.Linear(4, 8), nn.Linear(4, 8)]), torch.empty(3, 4)
    kept = kept_by(network, lambda: [layer(x) for layer in network])
    assert kept.activations == 4 * 3 * 4


def test_without_autograd_a_result_and_the_one_that_it_is_made_of_live_together() -> None:
    with torch.device("meta"):
        network, x = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5))), torch.empty(3, 64)
    assert peak_of(lambda: network(x)) == 4 * 3 * (64 + 64)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shapes_alone_tell_what_a_real_call_keeps(checkpointing: bool) -> None:
    model = Model(path=BASE, attention="plain")
    kept = []
    for device in ("cpu", "meta"):
        unet: Any = PipelineFolder.locate(BASE).unet("plain")
        if device == "meta":
            unet = unet_on_meta(architecture(BASE), model)
        with torch.device(device):
            make_trainable(unet, "lora", rank=2, alpha=2)
            x, text = torch.zeros(2, 4, 8, 8), Text(torch.zeros(2, 18, 64))
            t_B = torch.zeros(2, dtype=torch.long)
        network = Denoiser(unet)
        kept.append(
            kept_by(
                network,
                lambda: network(x, t_B, text),  # noqa: B023
                checkpointed=unet if checkpointing else None,
            )
        )
    assert kept[0].activations > 0
    assert (kept[0].block_activations > 0) == checkpointing
    assert kept[0] == kept[1]


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_as_much_is_trained_as_the_learner_trains(targets: str) -> None:
    trained = make_trainable(
        PipelineFolder.locate(LCM).unet(), "lora", rank=8, alpha=8, targets=targets
    )
    lora = ("model.trainable=lora", "model.lora_rank=8", f"model.lora_targets={targets}")
    policy = Networks(_config("shapes-lasro", *lora)).policy
    assert parameters_of(policy, trained=True) == sum(p.numel() for p in trained)


@pytest.mark.slow
def test_all_of_a_unet_is_trained_where_that_is_asked_for() -> None:
    plan = _plan("shapes-lasro", "model.trainable=full")
    assert plan["trained_params"] == plan["unet_params"]
    assert plan["bytes"]["learner"]["gradients"] == 4 * plan["unet_params"]


@pytest.mark.slow
def test_classifier_free_guidance_doubles_the_operations_of_a_picture() -> None:
    plain, guided = (_plan("shapes-ddpo", f"model.guidance_scale={scale}") for scale in (1, 5))
    assert guided["flops"]["sampling_picture"] == 2 * plain["flops"]["sampling_picture"]
    assert guided["flops"]["policy_row"] == 2 * plain["flops"]["policy_row"]
    # Without a KL nobody asks the untouched model.
    assert plain["flops"]["policy_row_untracked"] == 0
    assert guided["rows"]["sampler"] == 2 * plain["rows"]["sampler"]


@pytest.mark.slow
def test_a_picture_costs_a_call_for_each_of_its_steps() -> None:
    networks = Networks(_config("shapes-lasro"))
    with torch.no_grad():
        call = flops_of(lambda: networks.ask(networks.base, networks.latents(1)))
    plan = _plan("shapes-lasro", "model.trainable=full")
    assert plan["flops"]["sampling_picture"] == 2 * call


@pytest.mark.slow
def test_checkpointing_keeps_less_and_computes_more() -> None:
    plain, again = (
        _plan("shapes-lasro", "model.trainable=full", *on)
        for on in ((), ("learner.gradient_checkpointing=true",))
    )
    learner = plain["bytes"]["learner"]
    assert 0 < learner["activations_checkpointed"] < learner["activations"]
    assert plain["flops"]["policy_row"] < again["flops"]["policy_row"]
    assert again["bytes"]["learner"]["total"] <= learner["total"]


@pytest.mark.slow
def test_in_bf16_activations_and_weights_that_nobody_trains_count_less() -> None:
    whole, half = (
        _plan("shapes-ddpo", "model.guidance_scale=1", *given)["bytes"] for given in ((), _BF16)
    )
    # What normalises and what is made of that stays float32.
    learner = half["learner"]["activations"] / whole["learner"]["activations"]
    assert 0.5 < learner < 1
    assert half["sampler"]["activations"] < 1.1 * whole["sampler"]["activations"]
    networks = Networks(_config("shapes-ddpo"))
    rounded = sum(p.numel() for p in roundable(networks.base))
    assert 0.99 < rounded / parameters_of(networks.base) < 1  # but for what normalises
    # A sampler has the untouched network in float32 beside the one that draws.
    for role in ("sampler", "learner"):
        assert whole[role]["weights"] - half[role]["weights"] == 2 * rounded
    # Of an adapter's own matrices autocast makes a copy for each call.
    adapter = 4 * parameters_of(networks.policy, trained=True)
    assert whole["learner"]["cast_weights"] == 0 < half["learner"]["cast_weights"] <= adapter
    assert half["reward_server"] == whole["reward_server"]


@pytest.mark.slow
def test_of_what_is_all_trained_each_call_makes_a_copy_in_bf16() -> None:
    full = ("model.trainable=full", "model.guidance_scale=1")
    whole, half = (_plan("shapes-ddpo", *full, *given)["bytes"]["learner"] for given in ((), _BF16))
    assert half["weights"] == whole["weights"]
    assert half["cast_weights"] > 0.9 * half["weights"] / 2


@pytest.mark.slow
def test_a_decoder_in_bf16_takes_less_for_whoever_decodes() -> None:
    preset = "shapes-sqdf-aesthetic"  # whose reward is decoded
    whole, half = (_plan(preset, f"model.vae_precision={how}")["bytes"] for how in ("fp32", "bf16"))
    assert half["learner"]["activations"] < whole["learner"]["activations"]
    rounded = sum(p.numel() for p in roundable(Networks(_config(preset)).vae))
    for role, part in (("reward_server", "weights"), ("learner", "frozen")):
        assert whole[role][part] - half[role][part] == 2 * rounded
    assert half["sampler"] == whole["sampler"]


@pytest.mark.parametrize(("kind", "unets"), [("lora", 0), ("full", 1)])
def test_an_adapters_reference_is_its_base_and_a_full_policys_another_unet(
    kind: str, unets: int
) -> None:
    plan = _plan("shapes-ddpo", "model.guidance_scale=1", f"model.trainable={kind}")
    assert plan["bytes"]["learner"]["frozen"] == unets * 4 * plan["unet_params"]


def test_text_encoders_that_retire_take_no_memory_of_sampler_and_learner() -> None:
    stay, gone = (
        _plan("shapes-ddpo", f"model.text_encoders={how}")["bytes"] for how in ("stay", "retire")
    )
    taken = stay["learner"]["text_encoders"]
    assert gone["learner"]["text_encoders"] == 0 < taken
    assert stay["learner"]["total"] - gone["learner"]["total"] == taken
    assert stay["sampler"]["weights"] - gone["sampler"]["weights"] == taken


def test_zero_shards_the_optimizer_then_the_gradients() -> None:
    plain, state, both = (optimizer_bytes(1000, 4, stage) for stage in (0, 1, 2))
    assert (plain["gradients"], plain["optimizer"], plain["reduction"]) == (4000, 8000, 0)
    # DeepSpeed keeps a copy of the weights beside the two moments, a quarter of each on a rank.
    assert (state["gradients"], state["optimizer"]) == (4000, 3000)
    assert (both["gradients"], both["optimizer"]) == (1000, 3000)
    assert state["reduction"] == both["reduction"] == 4000
    assert optimizer_bytes(10**9, 4, 2)["reduction"] == 2 * 10**9


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke-sqdf", "shapes-draft", "shapes-gors-lcm"])
def test_other_methods_have_plans(preset: str) -> None:
    plan = _plan(preset)
    has_surrogate = _config(preset).alternation is not None
    assert ("surrogate" in plan["bytes"]["learner"]) == has_surrogate
    assert ("surrogate_row" in plan["flops"]) == has_surrogate
    assert plan["bytes"]["learner"]["total"] > plan["bytes"]["learner"]["weights"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_has_rows(path: Path) -> None:
    config = load_config(path, ["name=n"])
    rows = graph_rows(config)
    assert min(rows.policy) >= rows.step_rows >= 1
    assert (rows.climbed > 0) == (
        config.alternation is not None or config.method.differentiates_rewards
    )


@pytest.mark.parametrize(
    ("preset", "overrides", "rows"),
    [
        # Half of 8 in two parts, doubled for guidance, through the consistency model undoubled.
        (
            "sd15-sqdf-hps",
            ("method.policy_batch=8", "learner.ranks=2", "method.micro_batches=2"),
            GraphRows(2, (4,), (2,), climbed=2, reference=4),
        ),
        (
            "shapes-lasro",
            ("method.policy_batch=8", "method.anchor.batch=6", "method.reward_steps=all"),
            GraphRows(8, (14, 8), climbed=16, reference=12, target=6),
        ),
        (
            "shapes-dpo",
            ("method.policy_batch=8", "method.micro_batches=1"),
            GraphRows(8, (16,), reference=16),
        ),
    ],
)
def test_the_rows_of_a_graph_are_those_of_its_calls(
    preset: str, overrides: tuple[str, ...], rows: GraphRows
) -> None:
    config = load_config(CONFIGS / f"{preset}.yaml", ["name=n", *overrides])
    assert graph_rows(config) == rows


def test_a_surrogate_step_has_a_row_for_every_rewarded_latent_of_a_ranks_groups() -> None:
    sizes = ("method.surrogate.batch_groups=8", "learner.ranks=2", "actors.group_size=3")
    assert surrogate_rows(_config("shapes-lasro", *sizes)) == 8 // 2 * 3 * 2


def test_an_unknown_hub_id_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^model.path: 'some/model' .* segmind/SSD-1B"):
        architecture("some/model")


def test_a_folder_without_a_networks_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"cannot read {tmp_path}/\w+/config.json"):
        architecture(str(tmp_path))
