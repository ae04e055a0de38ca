"""`deploy.fleet.leave` where Ray answers, and its dashboard does not."""

from types import SimpleNamespace

import pytest
import ray
import ray.util.state
from ray.util.state.exception import RayStateApiException, ServerUnavailable

from deploy.fleet import leave


@pytest.mark.parametrize("error", [ServerUnavailable, RayStateApiException])
def test_a_dashboard_that_does_not_answer_is_told_with_its_port(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def list_actors(**asked: object) -> None:
        raise error("Failed to make request to http://head:8265/api/v0/actors.")

    context = SimpleNamespace(get_node_id=lambda: "abc", gcs_address="head:6379")
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray.util.state, "list_actors", list_actors)
    monkeypatch.setattr(leave, "_place_nothing_more", lambda *node: None)
    assert leave.main(["--within", "1"]) == 1
    assert "let this node reach port 8265 of the head" in caplog.text
    assert "http://head:8265/api/v0/actors" in caplog.text
