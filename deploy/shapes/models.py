"""The diffusers parts of the shapes world: their sizes, how they are put together and saved."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from reward_servers.scene import COLOURS, IMAGE_SIZE, SHAPES

PIPELINES = Path(__file__).parent / "pipelines"
MAX_TOKENS = 18
WORDS = ("a", "an", "and", "left", "right", "of", "above", "below", *COLOURS, *SHAPES)


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder of the Stable Diffusion family, four pixels to a latent cell."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        mid_block_add_attention=False,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )


def new_unet(**overrides: Any) -> UNet2DConditionModel:
    """An untrained UNet of the Stable Diffusion family, two resolutions, text-conditioned."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 80),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,  # diffusers: the number of heads
        norm_num_groups=16,
        **overrides,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text model of this vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the grammar is one token; writes its files."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    # Each word with a count of its own: ties would be broken differently in every run.
    bpe.train_from_iterator(
        [word for count, word in enumerate(WORDS, start=2) for _ in range(count)],
        trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False),
    )
    trained = json.loads(bpe.to_str())["model"]
    joined = ["".join(pair) for pair in trained["merges"]]
    # Ids of our own: the trainer numbers the letters differently in every run.
    letters = sorted(set(trained["vocab"]) - set(joined))
    tokens = [*letters, *joined, "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    folder.mkdir(parents=True, exist_ok=True)
    merges = [" ".join(pair) for pair in trained["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
    split = [word for word in WORDS if len(tokenizer.tokenize(word)) != 1]
    assert not split, f"words of several tokens: {split}"
    return tokenizer


def new_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids, int64 [B, MAX_TOKENS]."""
    return tokenizer(
        prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode_prompts(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Text states, float32 [N, MAX_TOKENS, E]."""
    batches = tokenize(tokenizer, prompts).split(2000)
    return torch.cat([encoder(ids).last_hidden_state for ids in batches])


def load_base() -> StableDiffusionPipeline:
    """The base in float32, with the attention that is quick on a CPU."""
    base = StableDiffusionPipeline.from_pretrained(PIPELINES / "base", torch_dtype=torch.float32)
    base.unet.set_attn_processor(AttnProcessor())
    return base


def guided_pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """The parts as a pipeline of many steps, with classifier-free guidance."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def consistency_pipeline(
    base: StableDiffusionPipeline, unet: UNet2DConditionModel
) -> LatentConsistencyModelPipeline:
    """The base with another UNet and the two-step scheduler."""
    return LatentConsistencyModelPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=unet,
        scheduler=LCMScheduler.from_config(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_half(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Saves in fp16 and leaves the pipeline's modules in float32."""
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float32)
    # transformers loads in the type that its config names, diffusers in float32: both the same.
    config = folder / "text_encoder" / "config.json"
    settings = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n")
