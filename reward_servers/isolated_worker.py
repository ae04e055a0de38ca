"""The other end of `reward_servers.isolated`: a program that scores with another Python.

It needs numpy and msgpack there, and nothing else of this project's environment: of this project it
can import `reward_servers` alone. Requests come on standard input and answers go to standard
output, frames of a magic, a length and msgpack; what the reward prints goes to standard error.

    {kind, args, check}           ->  {ready: true} or {error}
    {shape, images, prompts}, …   ->  {scores, failures} or {error}

Runs on Python 3.8 and later. Ends when its standard input does, whatever it is doing.
"""

import importlib
import importlib.util
import inspect
import os
import queue
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO, Dict, Optional, Tuple  # noqa: UP035  for Python 3.8

import msgpack
import numpy as np

MAX_REQUEST_BYTES = 1 << 30  # 340 pictures of 1024 x 1024
MAX_ANSWER_BYTES = 1 << 22
_HEADER = struct.Struct(">4sI")
_MAGIC = b"RWD1"


class FrameError(ValueError):
    """Bytes that are no frame, or a frame above its bound."""


def write_frame(stream: BinaryIO, message: Dict[str, Any], max_bytes: int) -> None:  # noqa: UP006
    """Sends one message.

    Raises:
        FrameError: it is larger than the other end takes.
    """
    body: Any = msgpack.packb(message)
    if len(body) > max_bytes:
        raise FrameError(f"a message of {len(body)} bytes; at most {max_bytes} are sent")
    stream.write(_HEADER.pack(_MAGIC, len(body)))
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO, max_bytes: int) -> Optional[Dict[str, Any]]:  # noqa: UP006, UP045
    """The next message, or None where the stream ends between two.

    Raises:
        FrameError: what comes is none, is cut off, or is larger than `max_bytes`.
    """
    header = stream.read(_HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise FrameError("the stream ended within a header")
    magic, size = _HEADER.unpack(header)
    if magic != _MAGIC or size > max_bytes:
        raise FrameError(f"a header {header!r}, which is not of a frame of up to {max_bytes} bytes")
    body = stream.read(size)
    if len(body) < size:
        raise FrameError(f"the stream ended after {len(body)} of {size} bytes")
    try:
        message = msgpack.unpackb(body, strict_map_key=False)
    except Exception as error:
        raise FrameError(f"a frame that is no msgpack: {error}") from error
    if not isinstance(message, dict):
        raise FrameError(f"a frame that holds a {type(message).__name__} and no message")
    return message


def main() -> None:
    """Answers requests until standard input ends."""
    requests, answers = _own_streams()
    inbox = queue.Queue()  # type: ignore[var-annotated]
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True).start()
    _set_path()
    model = None
    while True:
        message = inbox.get()
        try:
            if model is None:
                model = _load(message)
                answer = {"ready": True, "asks_for_metadata": _asks_for_metadata(model)}
            else:
                answer = _score(model, message)
        except BaseException as error:  # noqa: BLE001  the other end decides what to do
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        write_frame(answers, answer, MAX_ANSWER_BYTES)


def _own_streams() -> Tuple[BinaryIO, BinaryIO]:  # noqa: UP006
    """Standard input and output to ourselves: a print of the reward must not be an answer."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers


def _listen(requests: BinaryIO, inbox: "queue.Queue[Dict[str, Any]]") -> None:  # noqa: UP006
    try:
        while True:
            message = read_frame(requests, MAX_REQUEST_BYTES)
            if message is None:
                break
            inbox.put(message)
    except (OSError, FrameError):
        traceback.print_exc()
    os._exit(0)  # even where a model hangs


def _set_path() -> None:
    """Imports as `python -m` has them, and our `reward_servers` without what lies beside it.

    Its folder may be the site-packages of another environment, whose packages must stay away.
    """
    folder = Path(__file__).resolve().parent
    sys.path[0] = str(Path.cwd())
    spec = importlib.util.spec_from_file_location(
        "reward_servers", str(folder / "__init__.py"), submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["reward_servers"] = package
    spec.loader.exec_module(package)


def _load(message: Dict[str, Any]) -> Any:  # noqa: UP006
    module, _, name = message["kind"].partition(":")
    make = getattr(importlib.import_module(module), name)
    args = message["args"]
    if not callable(getattr(make, "score", None)):
        raise TypeError(f"{message['kind']} has no method score(images, prompts)")
    inspect.signature(make).bind(**args)
    if message.get("check"):
        if callable(getattr(make, "check", None)):
            make.check(**args)
        return make
    return make(**args)


def _asks_for_metadata(model: Any) -> bool:
    try:
        return "metadata" in inspect.signature(model.score).parameters
    except ValueError:  # some callables written in C have no signature
        return False


def _score(model: Any, message: Dict[str, Any]) -> Dict[str, Any]:  # noqa: UP006
    images = np.frombuffer(message["images"], dtype=np.uint8).reshape(message["shape"])
    more = {"metadata": message["metadata"]} if "metadata" in message else {}
    result = model.score(images, message["prompts"], **more)
    failures = dict(getattr(result, "failures", {}))
    values = getattr(result, "values", result)
    count = len(message["prompts"])
    if not isinstance(values, np.ndarray) or values.shape != (count,) or values.dtype.kind != "f":
        what = getattr(values, "dtype", type(values).__name__), getattr(values, "shape", "")
        raise TypeError(f"the reward returned {what}; it must return float32 [{count}]")
    return {
        "scores": [None if row in failures else float(x) for row, x in enumerate(values)],
        "failures": {str(row): str(why) for row, why in failures.items()},
    }


if __name__ == "__main__":
    main()
