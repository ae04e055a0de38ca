"""The `http` reward against the example service on a free port, sound and with every fault."""

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import pytest

from deploy.examples.reward_service import RewardService, ScoreHandler
from reward_servers.base import Failure, Scored, checked_scores
from reward_servers.jpeg import JpegSize
from reward_servers.registry import check_reward
from reward_servers.remote import HttpReward

TOKEN = "secret-of-the-test"
RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (5, 12, 20, 3)).astype(np.uint8)
PROMPTS = ["a red circle", "ünïcode ✓", "", "b", "c"]


class Odd:
    """A reward with a bad prompt, and one that is told of."""

    def score(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Scored:
        if "kaboom" in prompts:
            raise RuntimeError("kaboom is no prompt")
        values = images_BHWC.mean(axis=(1, 2, 3)).astype(np.float32)
        if metadata is not None:
            values = np.array([each["level"] for each in metadata], dtype=np.float32)
        return Scored(values, {i: "not this one" for i, p in enumerate(prompts) if p == "bad"})


class FaultyHandler(ScoreHandler):
    """The service's own, with what goes wrong between it and the client."""

    def reply(self, status: int, name: str, body: bytes) -> None:
        server: Any = self.server
        server.asked += 1
        if server.asked <= server.num_faults:
            status, name, body = server.fault(status, name, body)
        if server.drip_s:
            self.send_response(status)
            self.send_header("Content-Type", name)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(server.drip_s)
            return
        super().reply(status, name, body)


@pytest.fixture
def service() -> Iterator[Any]:
    served: Any = RewardService(("127.0.0.1", 0), Odd(), TOKEN)
    served.RequestHandlerClass = FaultyHandler
    served.asked, served.num_faults, served.drip_s = 0, 0, 0.0
    # Clients leave within an answer here, which the server would tell on stderr.
    served.handle_error = lambda request, address: None
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)


def reward_of(service: RewardService, **args: Any) -> HttpReward:
    url = f"http://127.0.0.1:{service.server_address[1]}/score"
    return HttpReward(url, **{"token_env": "REWARD_TOKEN", **args})


def reasons(reward: HttpReward, count: int = 5) -> set[str]:
    """Why nothing was scored."""
    outcomes = checked_scores(reward, IMAGES[:count], PROMPTS[:count])
    failed = [each.reason for each in outcomes if isinstance(each, Failure)]
    assert len(failed) == count, outcomes
    return set(failed)


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize("pixels", ["png", "raw"])
def test_pictures_arrive_as_they_are(service: Any, format: str, pixels: str) -> None:
    service._model = JpegSize()  # tells any changed pixel
    reward = reward_of(service, format=format, pixels=pixels, batch=2)
    expected = JpegSize().score(IMAGES, PROMPTS)
    np.testing.assert_array_equal(checked_scores(reward, IMAGES, PROMPTS), expected)
    assert service.asked == 3


def test_a_row_that_fails_leaves_the_others_their_scores(service: Any) -> None:
    outcomes = checked_scores(reward_of(service), IMAGES[:3], ["a", "bad", "c"])
    assert outcomes[1] == Failure("not this one")
    assert outcomes[::2] == pytest.approx(IMAGES[:3:2].mean(axis=(1, 2, 3)))


def test_a_reward_that_raises_there_is_a_reason_here(service: Any) -> None:
    (outcome,) = checked_scores(reward_of(service), IMAGES[:1], ["kaboom"])
    assert outcome == Failure("RuntimeError: kaboom is no prompt")


def test_metadata_reach_a_reward_that_takes_them(service: Any) -> None:
    told = [{"level": level} for level in (3, 1, 2, 5, 4)]
    scored = reward_of(service, batch=2).score(IMAGES, PROMPTS, told)
    assert list(scored.values) == [3, 1, 2, 5, 4]


def answers(body: Any, status: int = 200) -> Any:
    """A fault: this message instead of the answer."""
    return lambda _status, name, _body: (status, name, msgpack.packb(body))


FAULTS = {
    "wrong length": (answers({"scores": [1.0]}), "1 scores for 5 pictures"),
    "NaN": (answers({"scores": [float("nan")] * 5}), "not a finite float32"),
    "too large a number": (answers({"scores": [1e300] * 5}), "not a finite float32"),
    "null without reason": (answers({"scores": [None] * 5}), "score 0 is NoneType None"),
    "a text": (answers({"scores": ["1"] * 5}), "score 0 is str '1'"),
    "truth": (answers({"scores": [True] * 5}), "score 0 is bool True"),
    "no scores": (answers({"results": []}), "must hold a list 'scores'"),
    "a list": (answers([1.0] * 5), "holds a list and no mapping"),
    "a stray row": (answers({"scores": [1.0] * 5, "failures": {"5": "x"}}), "names row int 5 of 5"),
    "no reason": (answers({"scores": [1.0] * 5, "failures": {"0": 1}}), "reason of a failure"),
    "garbage": (lambda s, n, b: (s, n, b"\xc1\x00garbage"), "no msgpack"),
    "cut": (lambda s, n, b: (s, n, b[:-3]), "no msgpack"),
    "empty": (lambda s, n, b: (s, n, b""), "0 bytes that are no msgpack"),
    "another type": (lambda s, n, b: (s, "text/html", b"<p>hello"), "the answer is 'text/html'"),
    "oversized": (lambda s, n, b: (s, n, b"x" * 10**6), "longer than 12000 bytes"),
    "elsewhere": (lambda s, n, b: (307, n, b), "status 307"),
    "gone": (lambda s, n, b: (404, n, b"gone"), "status 404: gone"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_answer_fails_its_pictures_and_is_not_asked_again(service: Any, fault: str) -> None:
    service.fault, reason = FAULTS[fault]
    service.num_faults = 100
    assert all(reason in each for each in reasons(reward_of(service)))
    assert service.asked == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_service_that_is_busy_is_asked_again(service: Any, status: int) -> None:
    service.fault, service.num_faults = answers({}, status), 1
    assert len(checked_scores(reward_of(service), IMAGES[:1], PROMPTS[:1])) == 1
    assert service.asked == 2


def test_tries_end(service: Any) -> None:
    service.fault, service.num_faults = answers({}, 500), 100
    (reason,) = reasons(reward_of(service, tries=2))
    assert "after 2 tries: status 500" in reason
    assert service.asked == 2


def test_a_service_that_is_not_there_says_so(service: Any) -> None:
    reward = reward_of(service, tries=1)
    service.shutdown()
    service.server_close()
    assert all("Connection" in each for each in reasons(reward))


@pytest.mark.parametrize("drip_s", [0.05, 30.0])
def test_a_slow_answer_misses_the_deadline(service: Any, drip_s: float) -> None:
    service.fault, service.num_faults = answers({"scores": [1.0] * 5}), 1
    service.drip_s = drip_s
    began = time.monotonic()
    (reason,) = reasons(reward_of(service, timeout_s=0.6, attempt_s=0.3))
    assert "tries: " in reason
    assert time.monotonic() - began < 20


def test_a_wrong_token_is_told_and_never_shown(
    service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "not-" + TOKEN[::-1])
    reward = reward_of(service)
    (reason,) = reasons(reward)
    assert "status 401" in reason
    assert "REWARD_TOKEN" in reason
    assert service.asked == 1
    service.fault, service.num_faults = answers({"you said": "not-" + TOKEN[::-1]}, 403), 100
    (echoed,) = reasons(reward)
    shown = reason + echoed + repr(reward) + caplog.text
    assert "***" in echoed
    assert TOKEN[::-1] not in shown


def test_a_refused_picture_does_not_fail_its_neighbours(service: Any) -> None:
    service.fault, service.num_faults = answers({}, 413), 1
    outcomes = checked_scores(reward_of(service), IMAGES, PROMPTS)
    assert outcomes == pytest.approx(IMAGES.mean(axis=(1, 2, 3)))
    assert service.asked == 6


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"url": "ftp://host/x"}, "give http://host:port/path"),
        ({"url": "http://"}, "give http://host:port/path"),
        ({"url": "http://me:word@host/"}, "give a token through token_env"),
        ({"url": "https://host/x?key=secret"}, "give a token through token_env"),
        ({"format": "pickle"}, "formats are json, msgpack"),
        ({"pixels": "jpeg"}, "pixels png, raw"),
        ({"tries": 0}, "tries 0"),
        ({"timeout_s": 0}, "timeout_s 0"),
        ({"token_env": "NOT_SET_ANYWHERE"}, "no NOT_SET_ANYWHERE"),
    ],
)
def test_a_check_refuses_what_cannot_work(args: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_reward("http", {"url": "http://127.0.0.1:1/score", **args})


def posted(service: RewardService, body: bytes, **headers: str) -> tuple[int, str]:
    """Status and reason of a POST."""
    import requests

    answer = requests.post(
        f"http://127.0.0.1:{service.server_address[1]}/score",
        data=body,
        headers={
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/json",
            **headers,
        },
        timeout=5,
    )
    return answer.status_code, answer.json().get("error", "")


PNG_OF_NOTHING = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
SOUND = {"version": 1, "pixels": "raw", "size": [1, 1], "images": ["AAAA"], "prompts": ["x"]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version is 2"),
        ({"prompts": "x"}, "list of texts"),
        ({"prompts": []}, "0 prompts need as many images"),
        ({"size": [10**5, 10**5]}, "a side has up to"),
        ({"size": [1]}, "must be [height, width]"),
        ({"size": [1, 2]}, "has 3 bytes; 6"),
        ({"images": ["*"]}, "no base64"),
        ({"images": [3]}, "text of base64"),
        ({"pixels": "png", "images": [PNG_OF_NOTHING]}, "no PNG"),
        ({"pixels": "jpeg"}, "allowed are png, raw"),
        ({"metadata": {}}, "list of 1 mappings"),
    ],
)
def test_the_service_refuses_what_is_no_request(
    service: RewardService, change: dict[str, Any], reason: str
) -> None:
    assert posted(service, json.dumps(SOUND).encode()) == (200, "")
    status, error = posted(service, json.dumps({**SOUND, **change}).encode())
    assert status == 400
    assert reason in error


def test_the_service_bounds_a_request_and_asks_for_its_token(service: RewardService) -> None:
    service.max_body_bytes = 10
    assert posted(service, b"x" * 11)[0] == 413
    assert posted(service, b"x", Authorization="Bearer x")[0] == 401
    assert posted(service, b"{")[0] == 400
    assert posted(service, b"x", **{"Content-Type": "text/plain"})[0] == 400
