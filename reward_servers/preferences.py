"""CLIP models that were trained on people's choices between pictures: PickScore and HPS v2.

Both are OpenCLIP's ViT-H-14 with other weights, and a gradient passes both.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from reward_servers.clip import ClipFeatures, ClipReward, check_folder, tensors
from reward_servers.open_clip import clip_state

_VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScore(ClipReward):
    """PickScore (Kirstain et al. 2023, arXiv:2305.01569): 100 times the cosine, about 18 to 24.

    The factor is the model's own logit scale, 100 in the released weights. The shortest side is
    resized to 224 and the middle square looked at, as CLIP does. Licence of its repository: MIT.

    Args:
        clip: folder or hub id of the weights in transformers' format.
        processor: of tokenizer and image processor, where they do not lie with the weights; the
            authors take those of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    """

    def __init__(
        self, clip: str = "yuvalkirstain/PickScore_v1", processor: str | None = None
    ) -> None:
        super().__init__(ClipFeatures(clip, processor=processor))

    @staticmethod
    def check(clip: str = "yuvalkirstain/PickScore_v1", processor: str | None = None) -> None:
        """Looks for the folders; a hub id is left to the hub.

        Raises:
            ValueError: one is not there.
        """
        check_folder(clip, example="yuvalkirstain/PickScore_v1")
        if processor is not None:
            check_folder(processor, "preprocessor_config.json", "image processor", _VIT_H)

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images in [0, 1], with the gradient to them."""
        return self.clip.model.logit_scale.exp() * self.cosines(images_BCHW, prompts)


class Hpsv2(ClipReward):
    """HPS v2 or v2.1 (Wu et al. 2023, arXiv:2306.09341): the cosine, about 0.2 to 0.35.

    Its tables show a hundred times that. As its package does, the longest side is resized to 224,
    bicubic, and what is not square gets black around it, before CLIP's normalisation; here in
    float32, where the package computes in half precision. Licence of the weights: Apache 2.0.

    Args:
        clip: folder or hub id of the architecture in transformers' format: configuration, tokenizer
            and image processor; without `checkpoint` of the weights as well.
        checkpoint: the released file, HPS_v2_compressed.pt or HPS_v2.1_compressed.pt of xswu/HPSv2
            on the hub: a state dict of open_clip's ViT-H-14.

    Raises:
        ValueError: the file is none, or not of that architecture.
    """

    def __init__(self, clip: str = _VIT_H, checkpoint: str | None = None) -> None:
        state = None if checkpoint is None else _open_clip_state(Path(checkpoint))
        super().__init__(ClipFeatures(clip, state=state, fit="pad"))

    @staticmethod
    def check(clip: str = _VIT_H, checkpoint: str | None = None) -> None:
        """Looks for folder and file; a hub id is left to the hub.

        Raises:
            ValueError: one is not there, or no weights of HPS are named.
        """
        check_folder(clip, example=_VIT_H)
        if checkpoint is None and clip == _VIT_H:
            raise ValueError(
                f"{_VIT_H} is what HPS v2 was trained from: name HPS_v2.1_compressed.pt as "
                "checkpoint, or a folder of HPS v2 in transformers' format as clip"
            )
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise ValueError(
                f"no checkpoint at {checkpoint}: give the file HPS_v2.1_compressed.pt of xswu/HPSv2"
            )

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images in [0, 1], with the gradient to them."""
        return self.cosines(images_BCHW, prompts)


def _open_clip_state(path: Path) -> dict[str, Tensor]:
    try:
        found = tensors(path)
        return clip_state(found.get("state_dict", found))
    except Exception as error:
        raise ValueError(f"no weights of HPS can be read from {path}: {error}") from error
