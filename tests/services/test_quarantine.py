"""The command for records that could not be scored: beside a run, after it, and on bad input."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buffer.embedded import EmbeddedServer
from buffer.records import Record
from buffer.redis_replay import RedisReplay, ReplaySettings
from deploy.quarantine import main
from deploy.settings.run_config import load_config

pytestmark = pytest.mark.redis
SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"


@pytest.fixture
def folder(
    tmp_path: Path, make_group: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Of a run that is over and has two quarantined records of three."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    (tmp_path / "config.json").write_text(load_config(SMOKE, ["name=x"]).to_json())
    with EmbeddedServer(tmp_path / "redis") as server:
        replay = opened(server.url)
        replay.admit(limit=1, policy_version=0)
        replay.lease_ticket("sampler", lease_s=30)
        replay.put_group(0, make_group(0, size=3))
        for record, reason in zip(claimed(replay), ("boom", "too dark"), strict=False):
            replay.fail(record.record_id, reason, retry=False)
        replay.close()
    return tmp_path


@pytest.fixture
def beside(folder: Path) -> Iterator[RedisReplay]:
    """The replay of the run while it goes on."""
    with EmbeddedServer(folder / "redis") as server:
        replay = opened(server.url)
        yield replay
        replay.close()


def opened(url: str) -> RedisReplay:
    return RedisReplay.connect(ReplaySettings(url=url, run="x", capacity_records=96))


def claimed(replay: RedisReplay) -> list[Record]:
    return replay.claim("server", max_records=9, block_s=0.05, lease_s=30)


def test_it_lists_records_with_their_reasons(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert "0000000000.000" in output
    assert "0000000000.001" in output
    assert "1 × too dark" in output
    assert "0000000000.002" not in output


def test_a_released_record_is_scored_by_the_run_that_goes_on(
    folder: Path, beside: RedisReplay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--release", "0000000000.001"]) == 0
    assert "1 records will be scored again" in capsys.readouterr().out
    assert [record.record_id for record in claimed(beside)] == ["0000000000.001"]
    assert [q.record_id for q in beside.quarantined(9)] == ["0000000000.000"]


def test_all_are_released_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--release", "all"]) == 0
    assert main([str(folder)]) == 0
    assert "no record is in quarantine" in capsys.readouterr().out


def test_a_record_that_is_not_there_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--release", "0000000000.001", "0000000007.000"]) == 0
    assert "1 are not in quarantine" in capsys.readouterr().out


def test_what_is_no_id_releases_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--release", "0000000000.001", "everything"]) == 2
    assert "not a record id" in capsys.readouterr().err
    assert main([str(folder)]) == 0
    assert "0000000000.001" in capsys.readouterr().out


def test_a_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
