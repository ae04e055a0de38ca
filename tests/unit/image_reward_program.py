"""Run by the Python that has `image-reward`: a seeded checkpoint, and what the package scores.

python image_reward_program.py <root> <folder>  ->  scores as JSON, one list a prompt
"""

import json
import sys
from pathlib import Path

import numpy as np

ROOT, FOLDER = sys.argv[1:]
sys.path.append(ROOT)


def main() -> None:
    from reward_servers.image_reward_model import import_torchvision

    import_torchvision()
    import ImageReward  # pyright: ignore[reportMissingImports]
    import torch
    from ImageReward.ImageReward import (  # pyright: ignore[reportMissingImports]
        ImageReward as Model,
    )
    from PIL import Image

    pictures = np.load(Path(FOLDER, "pictures.npy"))
    prompts = json.loads(Path(FOLDER, "prompts.json").read_text())
    config, weights = str(Path(FOLDER, "med.json")), str(Path(FOLDER, "seeded.pt"))
    torch.manual_seed(0)
    model = Model(med_config=config)
    # As it is made, its last layers are nearly 0 and every picture scores the same.
    for name, parameter in model.mlp.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    torch.save(model.state_dict(), weights)
    del model
    loaded = ImageReward.load(weights, device="cpu", med_config=config)
    scores = [
        [loaded.score(prompt, Image.fromarray(picture)) for picture in pictures]
        for prompt in prompts
    ]
    Path(FOLDER, "expected.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
