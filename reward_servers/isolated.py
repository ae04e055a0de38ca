"""A reward of a package whose pins are not ours, in a child process with another Python.

    Isolated ──{images, prompts}──► python isolated_worker.py ──► module:Class of that environment
             ◄──{scores, failures}──

Works wherever a reward does: in a reward server under Ray, in an evaluation, in a script. The child
is parsed, never trusted: sizes are bounded, every call has a deadline. A child that died, hung or
answered garbage is ended and another started at the next call, and the pictures in hand fail with
the reason: they are not asked again one by one, for a model may take minutes to load.
"""

import contextlib
import logging
import os
import queue
import shutil
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reward_servers.answers import AnswerError, all_failed, of_answer
from reward_servers.base import Scored
from reward_servers.isolated_worker import (
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    read_frame,
    write_frame,
)

log = logging.getLogger(__name__)
_WORKER = Path(__file__).with_name("isolated_worker.py")
_CHECK_S = 120.0  # imports of a cold disk
_MAX_LINE = 2000  # bytes of a line of the log
# They would lead the other Python to the packages of this one.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class Isolated:
    """A reward in a process of another Python.

    Args:
        python: the other environment's Python, such as `/opt/image-reward/bin/python`; numpy and
            msgpack are installed there.
        kind: `module:Class` that can be imported there, a reward as any other; or a shipped kind.
        args: keyword arguments of the class.
        timeout_s: of a call. A child that takes longer is ended; keep it below the
            `scoring.timeout_s` of the run, which else gives up first and knows no reason.
        start_s: for the child to import and load its model.
        threads: CPU threads of the child's libraries.

    Raises:
        ValueError: no such Python, or the child cannot make the reward; the reason is its own.
    """

    def __init__(
        self,
        python: str,
        kind: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 50.0,
        start_s: float = 900.0,
        threads: int = 1,
    ) -> None:
        self._command = [_found(python), str(_WORKER)]
        self._hello = _hello(kind, args)
        self._timeout_s, self._start_s, self._threads = timeout_s, start_s, threads
        self._lock = threading.Lock()
        self._child = self._started()
        try:
            self._child.wait_ready(start_s)
        except (_ChildError, TimeoutError) as error:
            self.close()
            raise ValueError(f"{kind} in {python}: {error}") from error
        self._asks_for_metadata = self._child.asks_for_metadata

    @staticmethod
    def check(
        python: str,
        kind: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 50.0,
        start_s: float = 900.0,
        threads: int = 1,
    ) -> None:
        """Has the other Python import the class and look at its arguments; no model is loaded.

        Raises:
            ValueError: it cannot, and why.
        """
        if min(timeout_s, start_s, threads) <= 0:
            raise ValueError(
                f"timeout_s is {timeout_s}, start_s {start_s} and threads {threads}; "
                "each must be above 0"
            )
        child = _Child([_found(python), str(_WORKER)], {**_hello(kind, args), "check": True}, 1)
        try:
            child.wait_ready(_CHECK_S)
        except (_ChildError, TimeoutError) as error:
            raise ValueError(f"{kind} in {python}: {error}") from error
        finally:
            child.end()

    @property
    def asks_for_metadata(self) -> bool:
        """Whether the class has a `score` with a parameter of that name."""
        return self._asks_for_metadata

    def score(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Scored:
        """Scores [B] of the child.

        Args:
            metadata: what each prompt comes with; for a class that asks for it.

        Raises:
            RuntimeError: the reward raised; the child lives on.
            ValueError: the pictures are more than a request may hold.
        """
        if images_BHWC.nbytes > MAX_REQUEST_BYTES // 2:
            raise ValueError(
                f"pictures of {images_BHWC.nbytes} bytes; a request holds {MAX_REQUEST_BYTES // 2}"
            )
        deadline = time.monotonic() + self._timeout_s
        if not self._lock.acquire(timeout=self._timeout_s):
            return all_failed(len(prompts), "the call before this one still runs")
        try:
            more = {} if metadata is None else {"metadata": [dict(each) for each in metadata]}
            request = {
                "shape": list(images_BHWC.shape),
                "images": images_BHWC.tobytes(),
                "prompts": list(prompts),
                **more,
            }
            message = self._answer(request, deadline)
            if "error" in message:
                raise RuntimeError(str(message["error"]))
            return of_answer(message, len(prompts))
        except TimeoutError as error:
            return all_failed(len(prompts), str(error))
        except (_ChildError, AnswerError) as error:
            log.warning("reward %s: its process is ended: %s", self._hello["kind"], error)
            self._end()
            return all_failed(len(prompts), str(error))
        finally:
            self._lock.release()

    def close(self) -> None:
        """Ends the child; the next call would start another."""
        self._end()

    def _answer(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        if not self._child.lives:
            self._end()
            log.info("reward %s: another process is started", self._hello["kind"])
            self._child = self._started()
        try:
            self._child.wait_ready(deadline - time.monotonic())
        except TimeoutError:
            if self._child.age_s > self._start_s:
                raise _ChildError(f"it was not ready after {self._start_s:g} s") from None
            raise
        try:
            return self._child.ask(request, deadline - time.monotonic())
        except TimeoutError:
            raise _ChildError(f"no answer within {self._timeout_s:g} s") from None

    def _started(self) -> "_Child":
        child = _Child(self._command, self._hello, self._threads)
        self._end = weakref.finalize(self, child.end)  # once called, it lets go of the child
        return child


class _ChildError(Exception):
    """The child is of no use any more."""


class _Child:
    """One process, a thread that talks to it and one that logs what it says."""

    def __init__(self, command: list[str], hello: dict[str, Any], threads: int) -> None:
        env = {name: value for name, value in os.environ.items() if name not in _OURS}
        env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        self._kind = hello["kind"]
        self._began = time.monotonic()
        self._ready = False
        self.asks_for_metadata = False
        self._last_lines: deque[str] = deque(maxlen=3)
        self._requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[str, Any] | Exception] = queue.SimpleQueue()
        pipe = subprocess.PIPE
        # In a session of its own: Ctrl-C is for the run, which finishes what it has in hand.
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True
        )
        self._hears = threading.Thread(target=self._hear, daemon=True)
        self._hears.start()
        self._talks = threading.Thread(target=self._talk, daemon=True)
        self._talks.start()
        self._requests.put(hello)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began

    def wait_ready(self, timeout_s: float) -> None:
        """Until the model is loaded.

        Raises:
            TimeoutError: it is not yet.
            _ChildError: it never will be.
        """
        if self._ready:
            return
        try:
            answer = self._next(timeout_s)
        except TimeoutError:
            raise TimeoutError(f"its process loads for {self.age_s:.0f} s already") from None
        if answer.get("ready") is not True:
            raise _ChildError(str(answer.get("error", "it sent no greeting")))
        self.asks_for_metadata = answer.get("asks_for_metadata") is True
        self._ready = True

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to a request; as `wait_ready`."""
        self._requests.put(request)
        return self._next(timeout_s)

    def end(self) -> None:
        """Kills it, and waits for it and its threads; may be called again."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # within a driver, perhaps
            self._process.wait(timeout=10)
        self._requests.put(None)
        for thread in (self._talks, self._hears):
            if thread is not threading.current_thread():
                thread.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was buffered has nobody to read it
                stream.close()

    def _next(self, timeout_s: float) -> dict[str, Any]:
        try:
            answer = self._answers.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(answer, Exception):
            self._hears.join(timeout=1)
            said = " | ".join(self._last_lines)
            raise _ChildError(f"{answer}; its last lines: {said or 'none'}")
        return answer

    def _talk(self) -> None:
        stdin: Any = self._process.stdin
        stdout: Any = self._process.stdout
        try:
            while (request := self._requests.get()) is not None:
                write_frame(stdin, request, MAX_REQUEST_BYTES)
                answer = read_frame(stdout, MAX_ANSWER_BYTES)
                if answer is None:
                    raise EOFError
                self._answers.put(answer)
        except (OSError, EOFError):
            self._answers.put(RuntimeError(f"the process ended with status {self._status()}"))
        except ValueError as error:
            self._answers.put(error)

    def _status(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=5)
        return None

    def _hear(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(_MAX_LINE):
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._last_lines.append(text[:200])
                log.info("reward %s: %s", self._kind, text)


def _found(python: str) -> str:
    found = shutil.which(python)
    if found is None:
        raise ValueError(
            f"no Python at {python!r}; give the path of the other environment's bin/python"
        )
    return found


def _hello(kind: str, args: Mapping[str, Any] | None) -> dict[str, Any]:
    from reward_servers.registry import path_of

    return {"kind": path_of(kind), "args": dict(args or {})}
