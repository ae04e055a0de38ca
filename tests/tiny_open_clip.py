"""open_clip's CLIP with a ViT, written from its published structure: its names, plain torch."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and an MLP, each after a norm and added."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = {"c_fc": nn.Linear(width, hidden), "gelu": nn.GELU()}
        self.mlp = nn.Sequential(OrderedDict(layers, c_proj=nn.Linear(hidden, width)))

    def forward(self, x_BNE: Tensor, mask_NN: Tensor | None) -> Tensor:
        y = self.ln_1(x_BNE)
        x_BNE = x_BNE + self.attn(y, y, y, attn_mask=mask_NN, need_weights=False)[0]
        return x_BNE + self.mlp(self.ln_2(x_BNE))


class Tower(nn.Module):
    """Blocks in a row."""

    def __init__(self, width: int, heads: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))

    def forward(self, x_BNE: Tensor, mask_NN: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x_BNE = block(x_BNE, mask_NN)
        return x_BNE


class Visual(nn.Module):
    """Pixels to an embedding, read at the class token."""

    def __init__(self, side: int, patch: int, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(width, 2, 2, 2 * width)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patches = self.conv1(pixels_BCHW).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        x_BNE = torch.cat([first, patches], dim=1) + self.positional_embedding
        x_BNE = self.transformer(self.ln_pre(x_BNE))
        return self.ln_post(x_BNE[:, 0]) @ self.proj


class TinyOpenClip(nn.Module):
    """Of the sizes of `tests.tiny_clip`; every weight is drawn, so that a mix-up shows."""

    def __init__(self, words: int, length: int, side: int = 32, width: int = 16, out: int = 12):
        super().__init__()
        self.visual = Visual(side, 8, width, out)
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.transformer = Tower(width, 2, 2, 2 * width)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, out))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.eval().requires_grad_(False)

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        return self.visual(pixels_BCHW)

    def encode_text(self, tokens_BN: Tensor, end: int) -> Tensor:
        """Read at the first end token; whatever follows it is not seen."""
        length = tokens_BN.shape[1]
        mask_NN = torch.full((length, length), -torch.inf).triu(1)
        x_BNE = self.token_embedding(tokens_BN) + self.positional_embedding[:length]
        x_BNE = self.ln_final(self.transformer(x_BNE, mask_NN))
        ends = (tokens_BN == end).int().argmax(dim=1)
        return x_BNE[torch.arange(len(x_BNE)), ends] @ self.text_projection
