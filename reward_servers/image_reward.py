"""ImageReward (Xu et al. 2023, arXiv:2304.05977) by its own package, with a Python of its own.

The package `image-reward` 1.5 pins versions that are not ours, so it scores in a child process
(`reward_servers.isolated`); `environments/image-reward.txt` is what that environment holds.
"""

from pathlib import Path
from typing import Any

from reward_servers.isolated import Isolated

_MODEL = "reward_servers.image_reward_model:ImageRewardModel"
_HUB_NAME = "ImageReward-v1.0"


class ImageReward(Isolated):
    """How well a picture fits its prompt and pleases, by people's rankings; no gradient.

    The package's standardised score: mean 0 and deviation 1 over its authors' pictures, mostly
    within -2 and 2. It sees the middle square of a picture at 224 x 224 (bicubic) and the first 35
    tokens of the prompt. Licence of package and weights: Apache 2.0.

    Args:
        python: Python of the environment that has the package.
        checkpoint: file `ImageReward.pt`, or `ImageReward-v1.0`, which the package downloads from
            the hub (THUDM/ImageReward, 1.8 GB) where there is a network.
        med_config: file `med_config.json`, which lies beside it there; null: downloaded too.
        tokenizer: folder with the `vocab.txt` of bert-base-uncased; null: the hub's, or its cache.
        timeout_s, start_s, threads: as of `Isolated`.

    Raises:
        ValueError: the package cannot load that; the reason is its own.
    """

    def __init__(
        self,
        python: str,
        checkpoint: str = _HUB_NAME,
        med_config: str | None = None,
        tokenizer: str | None = None,
        *,
        timeout_s: float = 50.0,
        start_s: float = 900.0,
        threads: int = 1,
    ) -> None:
        super().__init__(
            python,
            _MODEL,
            _checked(checkpoint, med_config, tokenizer),
            timeout_s=timeout_s,
            start_s=start_s,
            threads=threads,
        )

    @staticmethod
    def check(  # type: ignore[override]  # its own arguments, as the registry calls it
        python: str,
        checkpoint: str = _HUB_NAME,
        med_config: str | None = None,
        tokenizer: str | None = None,
        *,
        timeout_s: float = 50.0,
        start_s: float = 900.0,
        threads: int = 1,
    ) -> None:
        """Looks for the files, and whether that Python has the packages; loads no model.

        Raises:
            ValueError: something is missing.
        """
        args = _checked(checkpoint, med_config, tokenizer)
        Isolated.check(python, _MODEL, args, timeout_s=timeout_s, start_s=start_s, threads=threads)


def _checked(checkpoint: str, med_config: str | None, tokenizer: str | None) -> dict[str, Any]:
    """The arguments of the model, with absolute paths."""
    if checkpoint != _HUB_NAME and not Path(checkpoint).is_file():
        raise ValueError(
            f"no checkpoint at {checkpoint}: give the file ImageReward.pt of THUDM/ImageReward on "
            f"the hub, or {_HUB_NAME} to have it downloaded"
        )
    if med_config is not None and not Path(med_config).is_file():
        raise ValueError(f"no med_config at {med_config}: give the file med_config.json")
    if tokenizer is not None and not (Path(tokenizer) / "vocab.txt").is_file():
        raise ValueError(f"no vocab.txt in {tokenizer}: give a folder with bert-base-uncased's")
    return {
        "checkpoint": checkpoint if checkpoint == _HUB_NAME else str(Path(checkpoint).resolve()),
        "med_config": None if med_config is None else str(Path(med_config).resolve()),
        "tokenizer": None if tokenizer is None else str(Path(tokenizer).resolve()),
    }
