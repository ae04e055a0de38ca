"""An untrained CLIP of the least size, and heads over its features."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from deploy.shapes.models import new_tokenizer

WIDTH, SIDE = 12, 32


def save_tiny_clip(folder: Path, hidden_act: str = "quick_gelu") -> str:
    """Model, tokenizer and image processor in one folder, as a hub has them; its path."""
    tokenizer: CLIPTokenizer = new_tokenizer(folder)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    common |= {"hidden_act": hidden_act}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(
            text_config={
                **common,
                "num_attention_heads": 2,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": tokenizer.model_max_length,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={**common, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8},
            projection_dim=WIDTH,
        )
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return str(folder)


def head_layers(*widths: int) -> dict[str, Tensor]:
    """A state dict as LAION's head has it: linear layers, their numbers with gaps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        stack = nn.Sequential(
            *(layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.Dropout()))
        )
    return {f"layers.{name}": value for name, value in stack.state_dict().items()}
