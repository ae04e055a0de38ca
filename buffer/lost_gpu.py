"""Errors after which CUDA fails in a process whatever is asked: only a new process helps.

Told by their text, so that nobody has to import torch: the context of a process is gone with an
illegal address, a lost device or an ECC error, and every later call repeats the first one's error.
"""


def is_gpu_lost(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that; memory that runs out does not."""
    cause = error.__cause__ or error.__context__
    return tells_lost_gpu(str(error)) or (cause is not None and is_gpu_lost(cause))


def tells_lost_gpu(text: str) -> bool:
    """Whether the text of an error says that, or a reason that was made of one."""
    return "CUDA error" in text and "out of memory" not in text
