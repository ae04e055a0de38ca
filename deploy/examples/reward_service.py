"""A reward as a service: what `kind: http` asks, served by any reward class of this machine.

    export REWARD_TOKEN=…
    python -m deploy.examples.reward_service --kind jpeg-size --port 8008 --token-env REWARD_TOKEN

and in the run's config, with the same variable where the run's processes start:

    rewards:
      size: {kind: http, args: {url: "http://127.0.0.1:8008/score", token_env: REWARD_TOKEN}}

It listens on loopback unless `--host` says otherwise, which needs a token; put a proxy with TLS
before it where the network is not yours. Requests are parsed, never trusted, and bounded.
"""

import argparse
import hmac
import inspect
import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from reward_servers.answers import to_answer
from reward_servers.base import Failure, Scored, checked_scores
from reward_servers.registry import build_reward
from reward_servers.wire import TYPES, Request, WireError, decode_request, encode

log = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FORMATS = {name: format for format, name in TYPES.items()}
_READ_S = 30.0


class RewardService(ThreadingHTTPServer):
    """Serves one model; requests wait for each other, for a model takes one batch at a time.

    Args:
        token: that clients must send; empty: none.
        max_body_bytes: of a request.
    """

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], model: Any, token: str = "", max_body_bytes: int = 1 << 28
    ) -> None:
        super().__init__(address, ScoreHandler)
        self.token = token
        self.max_body_bytes = max_body_bytes
        self._model = model
        self._takes_metadata = "metadata" in inspect.signature(model.score).parameters
        self._lock = threading.Lock()

    def scores(self, request: Request) -> Scored:
        """Scores [B], or reasons."""
        model: Any = self._model
        prompts = request.prompts
        if self._takes_metadata and request.metadata is not None:
            model, prompts = _Telling(model), [_Told(prompt) for prompt in prompts]
            for prompt, metadata in zip(prompts, request.metadata, strict=True):
                prompt.metadata = metadata
        with self._lock:
            outcomes = checked_scores(model, request.images_BHWC, prompts)
        values = [np.nan if isinstance(each, Failure) else each for each in outcomes]
        failures = {i: each.reason for i, each in enumerate(outcomes) if isinstance(each, Failure)}
        return Scored(np.array(values, dtype=float), failures)


class ScoreHandler(BaseHTTPRequestHandler):
    """POST /score; GET /health."""

    server: RewardService
    timeout = _READ_S  # of a client that says nothing
    server_version = "RewardService"

    def do_GET(self) -> None:
        """Whether it is there."""
        self.reply(200 if self.path == "/health" else 404, "application/json", b"{}")

    def do_POST(self) -> None:
        """Scores of a request."""
        given = self.headers.get("Authorization", "")
        if self.server.token and not hmac.compare_digest(
            given.encode(), f"Bearer {self.server.token}".encode()
        ):
            self.refuse(401, "no such token")
            return
        name = self.headers.get("Content-Type", "").partition(";")[0].strip()
        length = self.headers.get("Content-Length", "")
        if self.path != "/score" or name not in _FORMATS or not re.fullmatch("[0-9]{1,12}", length):
            self.refuse(400, f"POST {', '.join(_FORMATS)} of a known length to /score")
            return
        if int(length) > self.server.max_body_bytes:
            self.refuse(413, f"a request has up to {self.server.max_body_bytes} bytes")
            return
        try:
            request = decode_request(self.rfile.read(int(length)), _FORMATS[name])
        except WireError as error:
            self.refuse(400, str(error))
            return
        try:
            answer = to_answer(self.server.scores(request))
        except Exception:  # the client gets no traceback; the log has it
            log.exception("a request of %d pictures failed", len(request.prompts))
            self.refuse(500, "the reward failed; see the service's log")
            return
        self.reply(200, name, encode(answer, _FORMATS[name]))

    def refuse(self, status: int, reason: str) -> None:
        """An error with its reason; what is left of the request is not read."""
        self.close_connection = True
        self.reply(status, "application/json", json.dumps({"error": reason}).encode())

    def reply(self, status: int, name: str, body: bytes) -> None:
        """One whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", name)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """One line a request, in the log."""
        log.info("%s %s", self.address_string(), format % args)


class _Told(str):
    """A prompt and what is known of it, which stay together when a batch is cut."""

    metadata: Mapping[str, Any]


class _Telling:
    """A model that is told what its prompts know."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[_Told]) -> Any:
        """As the model's own."""
        return self._model.score(images_BHWC, prompts, [each.metadata for each in prompts])


def main() -> None:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.examples.reward_service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", required=True, help="a shipped reward, or module:Class")
    parser.add_argument("--args", default="{}", help="its arguments, as JSON")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8008)
    parser.add_argument("--token-env", help="environment variable that holds the token")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    token = os.environ.get(options.token_env or "", "")
    if not token and (options.token_env or options.host not in _LOOPBACK):
        parser.error(
            f"no token: set an environment variable and name it by --token-env; only loopback is "
            f"served without one, and the host is {options.host}"
        )
    try:
        model = build_reward(options.kind, json.loads(options.args))
    except ValueError as error:
        parser.error(str(error))
    with RewardService((options.host, options.port), model, token) as service:
        log.info("%s on http://%s:%d/score", options.kind, *service.server_address[:2])
        try:
            service.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")


if __name__ == "__main__":
    main()
