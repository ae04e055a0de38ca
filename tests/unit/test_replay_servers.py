"""Where a run's embedded servers are, and what each server of a run keeps."""

from pathlib import Path

import pytest

from deploy.replay_servers import replay_settings, server_folders
from deploy.run_config import load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
RUN = Path("run")


def test_one_server_has_the_names_that_it_has_without_others() -> None:
    assert server_folders(load_config(SMOKE), RUN) == {"replay-server": RUN / "redis"}


def test_several_servers_are_numbered_and_the_first_is_where_it_always_is() -> None:
    config = load_config(SMOKE, ["replay.shards=3"])
    assert server_folders(config, RUN) == {
        "replay-server-0": RUN / "redis",
        "replay-server-1": RUN / "redis-1",
        "replay-server-2": RUN / "redis-2",
    }


@pytest.mark.parametrize(("servers", "records"), [(1, 96), (2, 48), (3, 33), (5, 21)])
def test_each_server_keeps_whole_groups_and_all_keep_what_is_configured(
    servers: int, records: int
) -> None:
    # 32 groups of 3.
    urls = " ".join(f"redis://server{number}" for number in range(servers))
    parts = replay_settings(load_config(SMOKE), urls).of_shards()
    assert [part.capacity_records for part in parts] == [records] * servers
