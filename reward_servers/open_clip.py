"""Weights of open_clip's CLIP as those of transformers' `CLIPModel`: new names, the same numbers.

Both are one architecture. open_clip keeps the three projections of attention in one matrix, and its
two projections into the shared space transposed.
"""

from collections.abc import Mapping

from torch import Tensor

_TOWERS = {"visual.transformer": "vision_model", "transformer": "text_model"}
_WHOLE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BUFFERS = ("attn_mask",)  # made anew


def clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for `CLIPModel`, float32.

    Raises:
        ValueError: a name that open_clip's CLIP with a ViT does not have.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if name in _WHOLE:
            converted[_WHOLE[name]] = value.float()
        elif name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = value.float().T.contiguous()
        elif name not in _BUFFERS:
            converted |= _of_block(name, value.float())
    return converted


def _of_block(name: str, value: Tensor) -> dict[str, Tensor]:
    """Of `transformer.resblocks.3.attn.in_proj_weight`, for example."""
    tower, _, rest = name.partition(".resblocks.")
    number, _, part = rest.partition(".")
    if tower in _TOWERS and number.isdigit():
        layer = f"{_TOWERS[tower]}.encoder.layers.{number}"
        if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = part.rpartition("_")[2]
            return {
                f"{layer}.self_attn.{each}_proj.{kind}": third.clone()
                for each, third in zip("qkv", value.chunk(3), strict=True)
            }
        module, _, kind = part.rpartition(".")
        if module in _IN_BLOCK and kind in ("weight", "bias"):
            return {f"{layer}.{_IN_BLOCK[module]}.{kind}": value}
    raise ValueError(f"{name} is no weight of open_clip's CLIP with a ViT, such as ViT-H-14")
