"""The folder of a run as its other processes get it: they work there only if it is the driver's.

On a node without the shared file system the same path is another folder, which can be made and
written without an error: a learner that comes up there would find no checkpoint and begin anew,
and the result would lie where nobody looks for it. So every start of a driver puts a word of its
own into the folder, and who works there from another process looks for it first.
"""

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.run.files import CLUSTER_FILE

START_KEY = "start"
"""Of the word in `cluster.json`."""
_LOOK_EVERY_S = 0.5
_PATIENCE_S = 30.0
"""A network file system may show what another node has written with a delay."""


class NotSharedError(RuntimeError):
    """This node has not got the folder that the driver works in."""


@dataclass(frozen=True)
class SharedFolder:
    """The folder of a run, for a process beside its driver.

    Args:
        path: absolute, the same on every node.
        start: the word of the driver's start.
    """

    path: Path
    start: str

    def check(self, who: str) -> None:
        """Returns where this process finds what the driver has put there.

        Args:
            who: is about to work in it.

        Raises:
            NotSharedError: it does not, in one line with the host and the remedy.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while (found := self._missing()) is not None:
            if time.monotonic() > deadline:
                raise NotSharedError(
                    f"{who} on host {socket.gethostname()} looked for the driver's word in "
                    f"{self.path / CLUSTER_FILE} and found {found}: the runs' folder must be on a "
                    "file system that all nodes share, mounted at one path; name a folder on it "
                    "by FLEETUNE_RUNS in the environment of the job"
                )
            time.sleep(_LOOK_EVERY_S)

    def _missing(self) -> str | None:
        """What is there in place of the word; None: the word is."""
        try:
            told = json.loads((self.path / CLUSTER_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return "no such file"
        except (OSError, ValueError) as error:
            return f"an unreadable file ({type(error).__name__})"
        is_word = isinstance(told, dict) and told.get(START_KEY) == self.start
        return None if is_word else "that of another start"
