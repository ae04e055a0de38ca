"""What a process does with the GPU, or the part of one, that it has booked."""

import os


def hide_unbooked(num_gpus: float) -> None:
    """Has a process that booked no GPU see none, if nobody has looked for them yet.

    Ray hides none from it, and rewards, as DeepSpeed, compute on any GPU that they see. To be
    called before diffusers is imported, which looks.
    """
    if num_gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def keep_to_share(num_gpus: float) -> None:
    """Has torch refuse more of a GPU's memory than was booked of it, and see none that was not.

    Who takes more than planned then runs out of memory, and not who shares the GPU. A process's
    context, some hundred MB, is no memory of torch's and comes on top.

    Args:
        num_gpus: booked; of whole GPUs nothing is refused.
    """
    hide_unbooked(num_gpus)
    import torch

    if 0 < num_gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(num_gpus)


def score_in_tf32(num_gpus: float) -> None:
    """Has products of float32 matrices be done in TF32, as torch does convolutions by default.

    For processes that score alone. Their convolutions already run in TF32, so their matrix products
    may too.
    """
    import torch

    if num_gpus > 0 and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
