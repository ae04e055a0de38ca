"""The surrogate reward R(z, c, k): a differentiable score of clean latents (LaSRO, CVPR 2025).

It sees a clean latent z, the prompt's text states c and the sampling step k that made z, and
never an image. Higher is better; only differences within a prompt and step mean anything until
a regression term ties it to the reward's scale.
Shape suffixes: B rows, C H W latent, K heads.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.policy.precision import computing_in
from learner.policy.text import Text
from learner.settings.surrogate import Surrogate
from learner.settings.types import Precision

Backbone = Literal["unet_encoder", "unet", "conv"]


class Head(nn.Module):
    """Feature maps of several scales, pooled, to K scores; starts at exactly 0."""

    def __init__(
        self, channels: list[int], num_steps: int, heads: int, width: int = 96, hidden: int = 48
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(16 if c % 16 == 0 else 1, c),
                nn.SiLU(),
                nn.Conv2d(c, width, 3, padding=1),
                nn.GroupNorm(16, width),
                nn.SiLU(),
            )
            for c in channels
        )
        self.step = nn.Embedding(num_steps, width)
        self.heads = heads
        # Each head has hidden units of its own, else heads that start at 0 would stay alike.
        self.hidden = nn.Linear(width * (2 * len(channels) + 1), hidden * heads)
        self.out = nn.Conv1d(hidden * heads, heads, 1, groups=heads)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, maps: list[Tensor], step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, K], and the features that they are linear in; `step_B` counts from 0."""
        pooled = [self.step(step_B)]
        for scale, feature_map in zip(self.scales, maps, strict=True):
            features = scale(feature_map)
            pooled += [features.mean(dim=(2, 3)), features.amax(dim=(2, 3))]
        # Scores of near-equal samples differ by less than bf16 can tell.
        with computing_in("fp32", step_B.device):
            hidden = F.silu(self.hidden(torch.cat([p.float() for p in pooled], dim=1)))
            return self._scores(hidden), hidden

    def _scores(self, hidden_BF: Tensor) -> Tensor:
        """What the last layer makes of it [B, K]: not by a convolution, which a GPU rounds to
        TF32."""
        weight_KF = self.out.weight[:, :, 0]
        bias_K = self.out.bias
        assert bias_K is not None
        return (hidden_BF.unflatten(1, (self.heads, -1)) * weight_KF).sum(dim=-1) + bias_K


class _AsBefore:
    """A block's parameters need a gradient, or none, as they did when this was made.

    Whoever climbs a surrogate freezes it for the forward pass alone; computed again for the
    backward pass with parameters that need a gradient, a block would save other tensors, which
    torch refuses. It can be entered more than once, because a graph can be walked more than once.
    """

    def __init__(self, block: nn.Module) -> None:
        # After the next swap; what was before it takes its place.
        self._next = [(parameter, parameter.requires_grad) for parameter in block.parameters()]

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    def _swap(self) -> None:
        now = [(parameter, parameter.requires_grad) for parameter, _ in self._next]
        for parameter, needs in self._next:
            parameter.requires_grad_(needs)
        self._next = now


def _again(block: nn.Module, *inputs: Any) -> Any:
    def contexts() -> tuple[nullcontext[None], _AsBefore]:
        return nullcontext(), _AsBefore(block)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


class _Surrogate(nn.Module):
    """Feature maps of clean latents and a head on them."""

    precision: Precision
    head: Head

    def forward(self, z_BCHW: Tensor, text: Text, step_B: Tensor) -> Tensor:
        """Scores [B, K]."""
        return self.read(z_BCHW, text, step_B)[0]

    def enable_gradient_checkpointing(self, run: Callable[..., Any] | None = None) -> None:
        """Has the blocks of a UNet compute their activations again in the backward pass.

        Args:
            run: how, as diffusers' models take it: (block, *its inputs) -> outputs.
        """
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = run or _again  # pyright: ignore
                module.gradient_checkpointing = True  # pyright: ignore

    def disable_gradient_checkpointing(self) -> None:
        """Has them keep their activations."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False  # pyright: ignore

    def read(self, z_BCHW: Tensor, text: Text, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, K], and the features [B, F] of the last layer but one."""
        with computing_in(self.precision, z_BCHW.device):
            return self.head(self._maps(z_BCHW, text), step_B)

    def _maps(self, z_BCHW: Tensor, text: Text) -> list[Tensor]:
        raise NotImplementedError


class UNetSurrogate(_Surrogate):
    """Blocks of a pre-trained diffusion UNet, and a small CNN head on their feature maps.

    Args:
        unet: its blocks are copied, weights included.
        whole: with the up blocks too, where text and detail meet at full resolution; without
            them, as in the paper, the head reads the maps of the down and mid blocks.
        timestep: the noise level that the blocks are told; the latents are clean.
        precision: what it computes in; weights and scores stay in float32.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        whole: bool,
        num_steps: int,
        heads: int,
        timestep: int,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.timestep = timestep
        self.precision = precision
        self.time_proj = copy.deepcopy(unet.time_proj)
        self.time_embedding = copy.deepcopy(unet.time_embedding)
        self.added = _Added(unet) if unet.config["addition_embed_type"] == "text_time" else None
        self.conv_in = copy.deepcopy(unet.conv_in)
        self.down_blocks = copy.deepcopy(unet.down_blocks)
        self.mid_block = copy.deepcopy(unet.mid_block)
        self.up_blocks = copy.deepcopy(unet.up_blocks) if whole else nn.ModuleList()
        channels = list(unet.config["block_out_channels"])
        read = [channels[-1], *(channels[::-1] if whole else channels)]
        self.head = Head(read, num_steps, heads)

    def _maps(self, z_BCHW: Tensor, text: Text) -> list[Tensor]:
        t_B = torch.full((len(z_BCHW),), self.timestep, device=z_BCHW.device)
        emb = self.time_embedding(self.time_proj(t_B).to(z_BCHW.dtype))
        if self.added is not None:
            emb = emb + self.added(text)
        text_BLE = text.states_BLE
        hidden = self.conv_in(z_BCHW)
        skips, down_maps, up_maps = [hidden], [], []
        for block in self.down_blocks:
            hidden, outputs = block(hidden, temb=emb, **_reading(block, text_BLE))
            skips += outputs
            # The block's map before it is halved, at full resolution.
            down_maps.append(outputs[-2] if block.downsamplers is not None else outputs[-1])
        if self.mid_block is not None:  # some distilled UNets have none
            hidden = self.mid_block(hidden, emb, **_reading(self.mid_block, text_BLE))
        middle = hidden
        for block in self.up_blocks:
            own = [skips.pop() for _ in cast("nn.ModuleList", block.resnets)][::-1]
            # An odd size is halved with rounding up; the next skip tells what it was.
            size = skips[-1].shape[2:] if skips else None
            hidden = block(
                hidden,
                res_hidden_states_tuple=tuple(own),
                temb=emb,
                upsample_size=size,
                **_reading(block, text_BLE),
            )
            up_maps.append(hidden)
        return [middle, *(up_maps or down_maps)]


class _Added(nn.Module):
    """SDXL's embedding of pooled text and sizes, copied from its UNet."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.project = copy.deepcopy(unet.add_time_proj)
        self.embed = copy.deepcopy(unet.add_embedding)

    def forward(self, text: Text) -> Tensor:
        assert text.pooled_BP is not None, "this UNet takes a pooled text state"
        assert text.time_ids_B6 is not None
        sizes = self.project(text.time_ids_B6.flatten()).reshape(len(text), -1)
        return self.embed(torch.cat([text.pooled_BP, sizes.to(text.pooled_BP.dtype)], dim=1))


class ConvSurrogate(_Surrogate):
    """From scratch: residual convolutions that read the prompt by cross-attention."""

    def __init__(
        self,
        channels: int,
        text_width: int,
        *,
        num_steps: int,
        heads: int,
        width: int = 64,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.precision = precision
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.text = nn.Linear(text_width, width)
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(2)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = Head([width, width], num_steps, heads)

    def _maps(self, z_BCHW: Tensor, text: Text) -> list[Tensor]:
        hidden, maps = self.conv_in(z_BCHW), []
        tokens_read = self.text(text.states_BLE)
        for block, attend in zip(self.blocks, self.attend, strict=True):
            hidden = hidden + block(hidden)
            tokens = hidden.flatten(2).transpose(1, 2)
            read, _ = attend(tokens, tokens_read, tokens_read, need_weights=False)
            hidden = hidden + read.transpose(1, 2).reshape(hidden.shape)
            maps.append(hidden)
            hidden = F.avg_pool2d(hidden, 2)
        return maps


def _reading(block: nn.Module, text_BLE: Tensor) -> dict[str, Tensor]:
    """The text, for a block that reads it; SSD-1B's middle does not."""
    reads = getattr(block, "has_cross_attention", False)
    return {"encoder_hidden_states": text_BLE} if reads else {}


def new_surrogate(
    backbone: Backbone,
    unet: UNet2DConditionModel,
    *,
    num_steps: int,
    heads: int,
    timestep: int,
    precision: Precision = "fp32",
    seed: int,
) -> "UNetSurrogate | ConvSurrogate":
    """A surrogate for latents and prompts of this UNet's family, with weights in float32.

    Args:
        unet: the pre-trained multi-step UNet; `conv` takes only its shapes.
        num_steps: sampling steps k that it tells apart.
        timestep, precision: see `UNetSurrogate`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if backbone in ("unet", "unet_encoder"):
            surrogate = UNetSurrogate(
                unet,
                whole=backbone == "unet",
                num_steps=num_steps,
                heads=heads,
                timestep=timestep,
                precision=precision,
            )
        else:
            surrogate = ConvSurrogate(
                unet.config["in_channels"],
                unet.config["cross_attention_dim"],
                num_steps=num_steps,
                heads=heads,
                precision=precision,
            )
    # The UNet that was copied may be frozen.
    return surrogate.requires_grad_(True)


def surrogate_by(
    options: Surrogate, unet: UNet2DConditionModel, *, num_steps: int, seed: int
) -> "UNetSurrogate | ConvSurrogate":
    """Likewise, as settings have it."""
    return new_surrogate(
        options.backbone,
        unet,
        num_steps=num_steps,
        heads=options.heads,
        timestep=options.timestep,
        precision=options.precision,
        seed=seed,
    )
