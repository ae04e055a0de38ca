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
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from deploy.shapes.models import (
    MAX_TOKENS,
    PIPELINES,
    consistency_pipeline,
    encode_prompts,
    load_base,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
    save_half,
    tokenize,
)
from deploy.shapes.world import cells, draw_scene, render
from learner.diffusion.consistency import (
    NoiseModel,
    distillation_loss,
    distillation_times,
    guidance_embedding,
    teacher_step,
)
from learner.diffusion.schedule import NoiseSchedule, add_noise
from learner.policy.trainable import make_trainable
from reward_servers.scene import COLOURS, SHAPES, Scene

log = logging.getLogger(__name__)
GUIDANCE = (1.0, 4.0)
"""w = scale − 1 of the teacher while it is distilled, uniform."""


def fit(
    name: str,
    modules: Iterable[torch.nn.Module],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    ema_decay: float,
    save: Callable[[int], None],
    save_every: int = 0,
) -> None:
    """AdamW with warm-up and cosine decay; `save(step)` sees the averaged weights."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-2)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=200)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, steps - 200, eta_min=learning_rate * 0.02
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, decay], [200])
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, power=0.75)
    started, recent = time.monotonic(), []
    for step in range(1, steps + 1):
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(parameters)
        recent.append(loss.item())
        if step % 250 == 0:
            rate = step / (time.monotonic() - started)
            log.info(
                "%s step %d/%d loss %.5f %.1f steps/s",
                name,
                step,
                steps,
                float(np.mean(recent)),
                rate,
            )
            recent.clear()
        if step == steps or (save_every and step % save_every == 0):
            ema.store(parameters)
            ema.copy_to(parameters)
            save(step)
            ema.restore(parameters)


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


class LayoutProbe(torch.nn.Module):
    """Reads off text states what stands in each cell of a 3x3 grid, as a UNet's attention would."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.queries = torch.nn.Parameter(torch.randn(9, width) * 0.1)
        self.attend = torch.nn.MultiheadAttention(width, 4, batch_first=True)
        self.out = torch.nn.Linear(width, classes)

    def forward(self, states_BLE: Tensor) -> Tensor:
        """Logits [B, 9, classes]."""
        queries = self.queries.expand(len(states_BLE), -1, -1)
        read, _ = self.attend(queries, states_BLE, states_BLE, need_weights=False)
        return self.out(read)


def layout_targets(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Colour and shape in each cell of a 3x3 grid, int64 [B, 9]; 0 is an empty cell."""
    colours = np.zeros((len(scenes), 9), dtype=np.int64)
    shapes = np.zeros_like(colours)
    for row, scene in enumerate(scenes):
        for thing, cell in zip(scene.things, cells(scene), strict=True):
            colours[row, cell] = 1 + list(COLOURS).index(thing.colour)
            shapes[row, cell] = 1 + SHAPES.index(thing.shape)
    return torch.from_numpy(colours), torch.from_numpy(shapes)


def train_text(steps: int, batch: int = 256) -> None:
    """The text encoder, by predicting from its states where which colour and shape stands.

    The states then say what a picture of the prompt shows, which CLIP's encoder learns from
    millions of pictures. The probe is thrown away.
    """
    tokenizer = new_tokenizer(PIPELINES / "work" / "tokenizer")
    torch.manual_seed(2)
    encoder = new_text_encoder(tokenizer)
    probe = LayoutProbe(64, 1 + len(COLOURS) + 1 + len(SHAPES))
    rng = np.random.default_rng(7)

    def logits(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        ids = tokenize(tokenizer, [scene.prompt for scene in scenes])
        both = probe(encoder(ids).last_hidden_state)
        colour, shape = both.split([1 + len(COLOURS), 1 + len(SHAPES)], dim=2)
        return colour.flatten(0, 1), shape.flatten(0, 1)

    def loss_of(step: int) -> Tensor:
        scenes = [draw_scene(rng, held_out=False) for _ in range(batch)]
        colour, shape = logits(scenes)
        colour_target, shape_target = layout_targets(scenes)
        return F.cross_entropy(colour, colour_target.flatten()) + F.cross_entropy(
            shape, shape_target.flatten()
        )

    def save(step: int) -> None:
        scenes = [draw_scene(rng, held_out=True) for _ in range(1000)]
        with torch.no_grad():
            colour, shape = logits(scenes)
        colour_target, shape_target = (t.flatten() for t in layout_targets(scenes))
        there = colour_target > 0
        right = (colour.argmax(1) == colour_target) & (shape.argmax(1) == shape_target)
        log.info("held-out things read off rightly: %.4f", float(right[there].float().mean()))
        encoder.save_pretrained(PIPELINES / "work" / "text_encoder")

    fit(
        "text",
        [encoder, probe],
        loss_of,
        steps=steps,
        learning_rate=1e-3,
        ema_decay=0.999,
        save=save,
        save_every=1000,
    )


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
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    schedule = NoiseSchedule.from_config(scheduler.config)
    latents, prompts = encode_pictures(vae, 60_000, seed=3)
    states = encode_prompts(text_encoder, tokenizer, prompts)
    empty = encode_prompts(text_encoder, tokenizer, [""])
    generator = torch.Generator().manual_seed(4)

    def loss_of(step: int) -> Tensor:
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
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
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
        w = w_B[:, None, None, None]
        x_end = teacher_step(x_start, cond, uncond, w, start_B, end_B, schedule)
        losses_B = distillation_loss(
            eps_of(student), eps_of(target), x_start, x_end, start_B, end_B, schedule
        )
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
