"""Makes the pipelines of the shapes world, from nothing, on a CPU.

    python -m deploy.shapes.pretrain vae        # AutoencoderKL, pixels 32x32 <-> latents 4x8x8
    python -m deploy.shapes.pretrain text       # CLIP text encoder, by predicting layouts
    python -m deploy.shapes.pretrain base       # 50-step UNet, with CFG
    python -m deploy.shapes.pretrain lcm        # two-step UNet, distilled from the base
    python -m deploy.shapes.pretrain lcm-lora   # the same as a LoRA over the base

in this order; each writes into deploy/shapes/pipelines and reads what came before. What the
stored ones score stands in deploy/shapes/README.md.
"""

import argparse
import copy
import logging
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    LatentConsistencyModelPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from deploy.shapes.models import (
    MAX_TOKENS,
    PIPELINES,
    consistency_pipeline,
    encode_prompts,
    guided_pipeline,
    load_base,
    new_scheduler,
    new_unet,
    new_vae,
    save_half,
)
from deploy.shapes.text_stage import train_text
from deploy.shapes.training import fit
from deploy.shapes.world import draw_scene, render
from learner.diffusion.consistency import (
    NoiseModel,
    distillation_loss,
    distillation_times,
    guidance_embedding,
    teacher_step,
)
from learner.diffusion.ddim import guided
from learner.diffusion.schedule import NoiseSchedule, add_noise
from learner.policy.trainable import make_trainable

GUIDANCE = (1.0, 4.0)
"""w = scale − 1 of the teacher while it is distilled, uniform."""


def draw_pictures(rng: np.random.Generator, count: int) -> tuple[Tensor, list[str]]:
    """Rendered training scenes: float32 [B, 3, 32, 32] in [-1, 1], and their prompts."""
    scenes = [draw_scene(rng, held_out=False) for _ in range(count)]
    images = np.stack([render(scene, rng) for scene in scenes])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, [scene.prompt for scene in scenes]


def train_vae(steps: int, batch: int = 48) -> None:
    """Reconstruction with a little KL; the scaling factor makes latents of unit variance."""
    vae = new_vae()
    rng = np.random.default_rng(1)

    def loss_of(step: int) -> Tensor:
        pixels, _ = draw_pictures(rng, batch)
        posterior = vae.encode(pixels).latent_dist
        rebuilt = vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return F.l1_loss(rebuilt, pixels) + 2 * F.mse_loss(rebuilt, pixels) + 5e-4 * kl

    def save(step: int) -> None:
        with torch.no_grad():
            pixels, _ = draw_pictures(rng, 512)
            latents = vae.encode(pixels).latent_dist.sample()
        vae.register_to_config(scaling_factor=float(1 / latents.std()))
        vae.save_pretrained(PIPELINES / "work" / "vae")

    fit("vae", [vae], loss_of, steps=steps, learning_rate=2e-3, ema_decay=0.999, save=save)


def encode_pictures(vae: AutoencoderKL, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Scaled latents float32 [N, 4, 8, 8] of freshly rendered training scenes, and prompts."""
    rng = np.random.default_rng(seed)
    latents, prompts = [], []
    with torch.no_grad():
        for _ in range(count // 500):
            pixels, texts = draw_pictures(rng, 500)
            latents.append(vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor)
            prompts += texts
    return torch.cat(latents), prompts


def train_base(steps: int, batch: int = 64) -> None:
    """Noise prediction on the training scenes; one prompt in ten is empty, for CFG."""
    vae = AutoencoderKL.from_pretrained(PIPELINES / "work" / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(
        PIPELINES / "work" / "tokenizer", model_max_length=MAX_TOKENS
    )
    text_encoder = CLIPTextModel.from_pretrained(PIPELINES / "work" / "text_encoder").eval()
    torch.manual_seed(2)
    unet = new_unet()
    unet.set_attn_processor(AttnProcessor())  # on CPU quicker than the fused kernel at 64 tokens
    schedule = NoiseSchedule.from_config(new_scheduler().config)
    latents, prompts = encode_pictures(vae, 60_000, seed=3)
    states = encode_prompts(text_encoder, tokenizer, prompts)
    empty = encode_prompts(text_encoder, tokenizer, [""])
    generator = torch.Generator().manual_seed(4)

    def loss_of(step: int) -> Tensor:
        """The noise's squared error of a batch that is drawn anew."""
        rows = torch.randint(len(latents), (batch,), generator=generator)
        t_B = torch.randint(1000, (batch,), generator=generator)
        noise = torch.randn(batch, *latents.shape[1:], generator=generator)
        text = states[rows]
        text[torch.rand(batch, generator=generator) < 0.1] = empty
        noisy = add_noise(latents[rows], noise, t_B, schedule)
        with torch.autocast("cpu", torch.bfloat16):
            eps = unet(noisy, t_B, encoder_hidden_states=text).sample
        return F.mse_loss(eps.float(), noise)

    def save(step: int) -> None:
        pipeline = guided_pipeline(vae, text_encoder, tokenizer, unet)
        save_half(pipeline, PIPELINES / ("base" if step == steps else f"work/base-{step}"))

    fit(
        "base",
        [unet],
        loss_of,
        steps=steps,
        learning_rate=1e-3,
        ema_decay=0.999,
        save=save,
        save_every=2000,
    )


def distil(
    base: StableDiffusionPipeline,
    student: UNet2DConditionModel,
    *,
    steps: int,
    learning_rate: float,
    save: Callable[[int], None],
    batch: int = 64,
) -> None:
    """Latent consistency distillation of the guided base into `student` (Luo et al. 2023).

    Guidance w is drawn from `GUIDANCE`; a student with an embedding for it is told, an adapter
    without one learns the mean. The target is a moving average of the student.
    """
    teacher, schedule = base.unet, NoiseSchedule.from_config(base.scheduler.config)
    teacher.requires_grad_(False)
    target = copy.deepcopy(student).requires_grad_(False)
    latents, prompts = encode_pictures(base.vae, 40_000, seed=5)
    states = encode_prompts(base.text_encoder, base.tokenizer, prompts)
    empty = encode_prompts(base.text_encoder, base.tokenizer, [""]).expand(batch, -1, -1)
    generator = torch.Generator().manual_seed(6)
    embedding_dim = student.config.time_cond_proj_dim

    def loss_of(step: int) -> Tensor:
        """The distance of a step of the student from where the teacher's leads."""
        rows = torch.randint(len(latents), (batch,), generator=generator)
        start_B, end_B = distillation_times(torch.randint(50, (batch,), generator=generator))
        noise = torch.randn(batch, *latents.shape[1:], generator=generator)
        w_B = torch.empty(batch).uniform_(*GUIDANCE, generator=generator)
        told = guidance_embedding(w_B, embedding_dim) if embedding_dim else None
        text = states[rows]

        def eps_of(unet: UNet2DConditionModel) -> NoiseModel:
            def eps(x: Tensor, t_B: Tensor) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    out = unet(x, t_B, encoder_hidden_states=text, timestep_cond=told).sample
                return out.float()

            return eps

        x_start = add_noise(latents[rows], noise, start_B, schedule)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            both = teacher(
                torch.cat([x_start, x_start]),
                torch.cat([start_B, start_B]),
                encoder_hidden_states=torch.cat([text, empty]),
            ).sample.float()
        cond, uncond = both.chunk(2)
        guided_eps = guided(cond, uncond, 1 + w_B[:, None, None, None])
        x_end = teacher_step(x_start, guided_eps, start_B, end_B, schedule)
        eps = eps_of(student)(x_start, start_B)
        losses_B = distillation_loss(eps, eps_of(target), x_start, x_end, start_B, end_B, schedule)
        with torch.no_grad():
            for averaged, current in zip(target.parameters(), student.parameters(), strict=True):
                averaged.lerp_(current, 0.05)
        return losses_B.mean()

    fit(
        "distil",
        [student],
        loss_of,
        steps=steps,
        learning_rate=learning_rate,
        ema_decay=0.999,
        save=save,
    )


def train_lcm(steps: int) -> None:
    """The two-step UNet with a guidance embedding."""
    base = load_base()
    student = new_unet(time_cond_proj_dim=64)
    student.load_state_dict(base.unet.state_dict(), strict=False)
    student.set_attn_processor(AttnProcessor())

    def save(step: int) -> None:
        save_half(consistency_pipeline(base, student), PIPELINES / "lcm")

    distil(base, student, steps=steps, learning_rate=5e-4, save=save)


def train_lcm_lora(steps: int) -> None:
    """The same as an adapter over the base's UNet."""
    base = load_base()
    student = copy.deepcopy(base.unet)
    make_trainable(student, "lora", rank=32, alpha=32, targets="all")

    def save(step: int) -> None:
        LatentConsistencyModelPipeline.save_lora_weights(
            PIPELINES / "lcm-lora",
            unet_lora_layers={
                name: tensor.half() for name, tensor in get_peft_model_state_dict(student).items()
            },
        )

    distil(base, student, steps=steps, learning_rate=1e-3, save=save)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("stage", choices=("vae", "text", "base", "lcm", "lcm-lora"))
    parser.add_argument("--steps", type=int, help="training steps; default: those of the results")
    arguments = parser.parse_args()
    stages = {
        "vae": (train_vae, 3000),
        "text": (train_text, 2000),
        "base": (train_base, 3500),
        "lcm": (train_lcm, 500),
        "lcm-lora": (train_lcm_lora, 2000),
    }
    train, steps = stages[arguments.stage]
    train(arguments.steps or steps)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
