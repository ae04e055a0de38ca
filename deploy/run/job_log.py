"""What a run's log shows: our own events, and of other libraries what a user can act on.

`set_up` is the setup hook of every worker process of a run: it runs before anything heavy is
imported, which is when the libraries read their settings.
"""

import logging
import os
import warnings

FORMAT = "%(asctime)s %(name)s: %(message)s"
_OURS = ("actors", "buffer", "deploy", "learner", "reward_servers")
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Progress bars of loading and notes about optional packages, once in each process."""
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads of a process that wait for each other sleep, where OpenMP's would spin: samplers, rewards
and learner share the cores of a node."""


def set_up() -> None:
    """Sets this process up for a job: its log, and how its threads wait.

    What the user's environment says already, stays.
    """
    for name, value in {**_QUIET, **_WAITING}.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.WARNING, format=FORMAT, datefmt="%H:%M:%S")
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    # DeepSpeed sets its logger's level when it is imported, but leaves its filters alone. It warns
    # wherever there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
