"""A reward behind a URL: pictures and prompts are posted, scores come back, or reasons.

What is sent and answered is `reward_servers.wire`, and `deploy/examples/reward_service.py` is a
server of it. A failure never becomes a number: a service that is down, slow or wrong fails its
pictures with the reason, which the run counts, asks again, or ends over.
"""

import contextlib
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from reward_servers.answers import AnswerError, all_failed, of_answer
from reward_servers.base import Scored
from reward_servers.wire import PIXELS, TYPES, Request, WireError, decode, encode_request

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

log = logging.getLogger(__name__)
_CONNECT_S = 5.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_ROW_BYTES = 2000  # of an answer: a number, or a reason of 400 characters
_REFUSED = (400, 413, 422)  # of a request, which one of its pictures may be the cause of
_LATER = (429, 500, 502, 503, 504)


class HttpReward:
    """Scores of a service.

    Args:
        url: `http://` or `https://`, of the POST.
        format: `msgpack` or `json`.
        pixels: `png` or `raw` bytes; neither loses anything.
        token_env: name of the environment variable that holds the bearer token; null: none is sent.
        batch: most pictures of one request.
        timeout_s: of a call in all, further tries included; keep it below the
            `scoring.timeout_s` of the run.
        attempt_s: of one try.
        tries: of a request, where the service was not reached, or answered 429 or 5xx.

    Raises:
        ValueError: an argument is not allowed, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        format: str = "msgpack",
        pixels: str = "png",
        token_env: str | None = None,
        batch: int = 16,
        timeout_s: float = 50.0,
        attempt_s: float = 20.0,
        tries: int = 4,
    ) -> None:
        import requests

        HttpReward.check(
            url,
            format=format,
            pixels=pixels,
            token_env=token_env,
            batch=batch,
            timeout_s=timeout_s,
            attempt_s=attempt_s,
            tries=tries,
        )
        self._url, self._format, self._pixels = url, format, pixels
        self._batch, self._tries = batch, tries
        self._timeout_s, self._attempt_s = timeout_s, attempt_s
        self._token_env = token_env
        self._token = os.environ[token_env] if token_env else ""
        if self._token and urlsplit(url).scheme == "http":
            log.info("%s is asked without encryption; whoever sees the traffic has its token", url)
        self._session = requests.Session()
        self._random = random.Random()  # for waits only

    def __repr__(self) -> str:
        return f"HttpReward({self._url!r}, token={'***' if self._token else None})"

    @staticmethod
    def check(
        url: str,
        *,
        format: str = "msgpack",
        pixels: str = "png",
        token_env: str | None = None,
        batch: int = 16,
        timeout_s: float = 50.0,
        attempt_s: float = 20.0,
        tries: int = 4,
    ) -> None:
        """Looks at the arguments; asks nobody.

        Raises:
            ValueError: one is not allowed, or the variable of the token is not set.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}; give http://host:port/path or https://…")
        if parts.username or parts.password:
            raise ValueError("url holds a user or password; give a token through token_env")
        if parts.query or parts.fragment:
            raise ValueError(
                "url holds a query or a fragment, which may be a secret and would be shown in logs "
                "and on the run's model card: give a token through token_env"
            )
        if format not in TYPES or pixels not in PIXELS:
            raise ValueError(
                f"format is {format!r} and pixels {pixels!r}; formats are {', '.join(TYPES)} and "
                f"pixels {', '.join(PIXELS)}"
            )
        if min(batch, tries) < 1 or min(timeout_s, attempt_s) <= 0:
            raise ValueError(
                f"batch is {batch}, tries {tries}, timeout_s {timeout_s} and attempt_s {attempt_s};"
                " all must be above 0"
            )
        token = os.environ.get(token_env, "") if token_env else "-"
        if not token or not token.isascii() or not token.isprintable():
            raise ValueError(
                f"the environment has no {token_env} of printable ASCII; set it to the service's "
                "token where the run's processes start"
            )

    def score(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Scored:
        """Scores [B]; a row has a reason where the service gave one, or could not be asked.

        Args:
            metadata: what is known of each prompt, which the service gets too.
        """
        deadline = time.monotonic() + self._timeout_s
        values, failures = np.full(len(prompts), np.nan), {}
        for first in range(0, len(prompts), self._batch):
            rows = slice(first, first + self._batch)
            request = Request(
                images_BHWC[rows],
                list(prompts[rows]),
                None if metadata is None else list(metadata[rows]),
            )
            part = self._asked(request, deadline)
            values[rows] = part.values
            failures |= {first + row: why for row, why in part.failures.items()}
        return Scored(values, failures)

    def _asked(self, request: Request, deadline: float) -> Scored:
        """A request that is refused is asked again picture by picture: one may be the cause."""
        count = len(request.prompts)
        try:
            return of_answer(self._posted(request, deadline), count)
        except _RefusedError as error:
            if count == 1:
                return all_failed(1, str(error))
            parts = [self._asked(_row(request, row), deadline) for row in range(count)]
            return Scored(
                np.concatenate([part.values for part in parts]),
                {row: part.failures[0] for row, part in enumerate(parts) if part.failures},
            )
        except (_NoAnswerError, AnswerError, WireError) as error:
            return all_failed(count, self._masked(f"{self._url}: {error}"))

    def _posted(self, request: Request, deadline: float) -> dict[str, Any]:
        """The answer's message, after further tries if need be."""
        body = encode_request(request, self._format, self._pixels)
        told = ""
        for attempt in range(1, self._tries + 1):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _NoAnswerError(told or f"no time is left of {self._timeout_s:g} s")
            wait_s = self._random.uniform(0.5, 1) * min(
                _FIRST_WAIT_S * 2 ** (attempt - 1), _LONGEST_WAIT_S
            )
            try:
                return self._try(body, len(request.prompts), min(left_s, self._attempt_s))
            except _LaterError as error:
                reason, wait_s = str(error), max(wait_s, error.after_s)
            except OSError as error:  # all of requests' are
                reason = f"{type(error).__name__}: {error}"
            told = f"after {attempt} tries: {reason}"
            if attempt == self._tries or wait_s >= deadline - time.monotonic():
                raise _NoAnswerError(told)
            log.info("%s", self._masked(f"{self._url}, try {attempt}: {reason}"))
            time.sleep(wait_s)
        raise AssertionError("the last try raises")

    def _try(self, body: bytes, count: int, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        with self._session.post(
            self._url,
            data=body,
            headers={
                "Content-Type": TYPES[self._format],
                "Accept": TYPES[self._format],
                "Accept-Encoding": "identity",
            },
            auth=self._authorised,
            timeout=(min(_CONNECT_S, timeout_s), timeout_s),
            stream=True,
            allow_redirects=False,  # the token is for this URL
        ) as response:
            most = _ROW_BYTES * (count + 1)
            content = _read(response, most, deadline, timeout_s)
        status = response.status_code
        if status == 200:
            if len(content) > most:
                raise AnswerError(f"the answer is longer than {most} bytes")
            found = response.headers.get("Content-Type", "").partition(";")[0].strip()
            if found != TYPES[self._format]:
                raise AnswerError(f"the answer is {found!r}; it must be {TYPES[self._format]!r}")
            return decode(content, self._format)
        told = self._masked(f"status {status}: {content[:200].decode('utf-8', 'replace')}")
        if status in _LATER:
            raise _LaterError(told, response.headers.get("Retry-After", ""))
        if status in (401, 403):
            raise _NoAnswerError(f"{told}; is {self._token_env or 'token_env'} the right token?")
        raise _RefusedError(told) if status in _REFUSED else _NoAnswerError(told)

    def _authorised(self, request: "PreparedRequest") -> "PreparedRequest":
        """Also keeps a .netrc of this machine out of it."""
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _masked(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text


class _NoAnswerError(Exception):
    """The service gave no scores and asking again now is of no use."""


class _RefusedError(Exception):
    """The service does not take this request."""


class _LaterError(Exception):
    """The service wants to be asked again."""

    def __init__(self, told: str, retry_after: str) -> None:
        super().__init__(told)
        self.after_s = 0.0
        with contextlib.suppress(ValueError):  # a date, or nothing
            self.after_s = min(max(float(retry_after), 0.0), 3600.0)


def _row(request: Request, row: int) -> Request:
    rows = slice(row, row + 1)
    metadata = None if request.metadata is None else request.metadata[rows]
    return Request(request.images_BHWC[rows], request.prompts[rows], metadata)


def _read(response: "Response", most: int, deadline: float, timeout_s: float) -> bytes:
    """The body, or `most` + 1 bytes of it.

    Raises:
        OSError: it comes too slowly, or not to its end.
    """
    from urllib3.exceptions import HTTPError

    content = b""
    try:
        while len(content) <= most and (part := response.raw.read1(most + 1 - len(content))):
            content += part
            if time.monotonic() > deadline:
                raise TimeoutError(f"the answer was not complete after {timeout_s:g} s")
    except HTTPError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    return content
