"""`deploy.erase` on real servers: a run's keys go, and nothing else does."""

from pathlib import Path

import pytest

from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayUnavailable
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings
from deploy.erase import erase, main
from deploy.run.folder import RunFolder
from deploy.settings.run_config import load_config

pytestmark = pytest.mark.redis
SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"


def begun(url: str, run: str, shard: int = 0, shards: int = 1) -> RedisReplay:
    """A run on a server that has given out a ticket."""
    replay = RedisReplay.connect(
        ReplaySettings(url=url, run=run, capacity_records=8, shard=shard, shards=shards)
    )
    replay.admit(limit=4, policy_version=0)
    assert replay.lease_ticket("sampler", lease_s=60) is not None
    return replay


def test_a_run_is_erased_on_all_of_its_servers_and_no_other_run_is(
    server: EmbeddedServer,
    more_servers: list[EmbeddedServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    urls = [server.url, more_servers[0].url]
    for number, url in enumerate(urls):
        begun(url, "erased", number, len(urls)).close()
    other = begun(server.url, "erased-not")
    monkeypatch.setenv("REDIS_URL", " ".join(urls))
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path))
    assert main(["erased"]) == 0
    assert capsys.readouterr().out.startswith("removed ")
    assert main(["erased"]) == 0
    assert capsys.readouterr().out == "removed 0 keys of the run 'erased'\n"
    assert other.erase() > 3
    other.close()


def test_a_run_under_way_is_left_alone(server: EmbeddedServer, tmp_path: Path) -> None:
    replay = begun(server.url, "held")
    folder = RunFolder(tmp_path / "held")
    assert not folder.is_held()
    folder.open(load_config(SMOKE, ["name=held"]), resume=False)
    environ = {"REDIS_URL": server.url, "FLEETUNE_RUNS": str(tmp_path)}
    with pytest.raises(ValueError, match="is under way: stop it first"):
        erase("held", environ)
    assert replay.erase() > 3
    replay.close()


@pytest.mark.parametrize(
    ("url", "told"), [("", "REDIS_URL is not set"), ("localhost", "not a Redis URL: localhost")]
)
def test_servers_that_are_not_given_are_asked_for(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        erase("mine", {"REDIS_URL": url})


def test_a_name_that_would_match_other_runs_is_refused(server: EmbeddedServer) -> None:
    with pytest.raises(ValueError, match="run"):
        erase("*", {"REDIS_URL": server.url})


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ReplayUnavailable):
        erase("mine", {"REDIS_URL": f"unix://{tmp_path}/none.sock"})
