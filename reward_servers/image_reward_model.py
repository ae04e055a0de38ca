"""ImageReward inside the environment that has its package; `image_reward` starts it there.

Scores are those of the package's `score`, of a whole batch at a time. It knows nothing of this
project's own environment: torch, transformers and the others are of the versions found there.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional  # noqa: UP035  for older Pythons

import numpy as np

_NEEDED = (
    "ImageReward",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "fairscale",
    "clip",
    "PIL",
)
_MAX_TOKENS = 35  # of a prompt, as the package cuts it
_kept: List[Any] = []  # noqa: UP006  what must outlive its maker


class ImageRewardModel:
    """See `reward_servers.image_reward.ImageReward`, whose `_checked` makes these arguments.

    Raises:
        ValueError: the checkpoint lacks weights of the model.
    """

    def __init__(
        self,
        checkpoint: str,
        med_config: Optional[str] = None,  # noqa: UP045
        tokenizer: Optional[str] = None,  # noqa: UP045
    ) -> None:
        import_torchvision()
        import ImageReward  # pyright: ignore[reportMissingImports]
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        with _found_in(tokenizer):
            self._model = ImageReward.load(checkpoint, device=device, med_config=med_config)
        self._device = device
        if Path(checkpoint).is_file():
            _check_complete(self._model, checkpoint)

    @staticmethod
    def check(
        checkpoint: str,
        med_config: Optional[str] = None,  # noqa: UP045
        tokenizer: Optional[str] = None,  # noqa: UP045
    ) -> None:
        """Looks whether all packages are there, and, where the hub may not be asked, all files.

        Raises:
            ValueError: some are not.
        """
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"{sys.executable} has no {', '.join(missing)}; install "
                "reward_servers/environments/image-reward.txt there"
            )
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            _check_downloaded(Path(checkpoint).is_file(), med_config, tokenizer)

    def score(self, images_BHWC: np.ndarray, prompts: List[str]) -> np.ndarray:  # noqa: UP006
        """Float32 [B]."""
        import torch
        from PIL import Image

        model = self._model
        tokens = model.blip.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        ).to(self._device)
        pixels_BCHW = torch.stack([model.preprocess(Image.fromarray(i)) for i in images_BHWC])
        with torch.no_grad():
            scores = model.score_gard(
                tokens.input_ids, tokens.attention_mask, pixels_BCHW.to(self._device)
            )
        return scores[:, 0].float().cpu().numpy()


def _check_downloaded(
    has_checkpoint: bool,
    med_config: Optional[str],  # noqa: UP045
    tokenizer: Optional[str],  # noqa: UP045
) -> None:
    """Looks for what is not given where the package and transformers would have put it."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path("~/.cache/ImageReward").expanduser()
    wanted = [] if has_checkpoint else ["ImageReward.pt"]
    wanted += [] if med_config else ["med_config.json"]
    missing = [str(folder / name) for name in wanted if not (folder / name).is_file()]
    cached = tokenizer or try_to_load_from_cache("bert-base-uncased", "vocab.txt")
    missing += [] if isinstance(cached, str) else ["the vocab.txt of bert-base-uncased"]
    if missing:
        raise ValueError(
            f"HF_HUB_OFFLINE is set, and {', '.join(missing)} cannot be had: name the files by "
            "checkpoint, med_config and tokenizer"
        )


def import_torchvision() -> None:
    """Imports it, also where its operators were built for CUDA and torch was not.

    The package uses its transforms alone; `nms`, whose schema is missing then, is only declared.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _kept.append(library)
        importlib.import_module("torchvision")


@contextlib.contextmanager
def _found_in(tokenizer: Optional[str]) -> Iterator[None]:  # noqa: UP045
    """Has the package, which asks for `bert-base-uncased`, find this folder by that name."""
    if tokenizer is None:
        yield
        return
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bert-base-uncased").symlink_to(tokenizer, target_is_directory=True)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _check_complete(model: Any, checkpoint: str) -> None:
    """The package loads what fits and says nothing of the rest."""
    import torch

    state: Dict[str, Any] = torch.load(  # noqa: UP006
        checkpoint, map_location="meta", weights_only=True
    )
    missing = [name for name, _ in model.named_parameters() if name not in state]
    if missing:
        raise ValueError(
            f"{checkpoint} lacks {len(missing)} weights of ImageReward, such as {missing[0]}"
        )
