"""What Prometheus reads of a run: from a real local Ray, through its own endpoint."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
import ray

from buffer.records import Counters
from deploy.local_head import free_ports
from deploy.run.metrics import ALL, RewardMetrics, RunMetrics, SampleMetrics

pytestmark = pytest.mark.ray
RUN = "measured"
PAGE = {
    "cycle": 3,
    "cycles": 20,
    "queue_share": 0.25,
    "fleets": {
        "samplers": {
            "wanted": 3,
            "workers": {
                "sampler-0": {
                    "state": "working",
                    "images": 480,
                    "rate": 8.0,
                    "failures": 1,
                    "policy_version": 4,
                    "wait_s": 2.5,
                    "sample_s": 30.0,
                },
                "sampler-1": {"state": "placing"},
                "sampler-2 (ending)": {"state": "draining", "images": 7},
            },
        }
    },
}


@pytest.fixture(scope="module")
def scrape() -> Iterator[Callable[[], str]]:
    (port,) = free_ports(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            _metrics_export_port=port,
            _system_config={"metrics_report_interval_ms": 500},
        )

        def read() -> str:
            try:
                url = f"http://127.0.0.1:{port}/metrics"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    return answer.read().decode()
            except OSError:  # the agent is starting
                return ""

        yield read
        ray.shutdown()


@pytest.fixture(scope="module")
def metrics(scrape: Callable[[], str]) -> RunMetrics:
    exported = RunMetrics(RUN)
    exported.show_curve("fresh", {"reward_2step": 0.61})
    exported.show_page(PAGE)
    counts = dict.fromkeys(Counters.__dataclass_fields__, 0)
    exported.show_counters(
        Counters(**{**counts, "issued_records": 12, "committed": 9, "pending": 3})
    )
    exported.show_learner({"stage": "fitting", "seconds": {"policy": 4.0}})
    spent = {"policy": 10.0, "waiting_for_rewards": 1.5}
    exported.show_learner({"stage": "training", "seconds": spent})
    rewards = RewardMetrics(RUN)
    rewards.called("binding", 0.2, 0)
    rewards.called("binding", 0.02, 3)
    SampleMetrics(RUN).fetched([0, 3], [2.0, 40.0])
    exported.show_memory(5e9)
    return exported


def value(text: str, name: str, **labels: str) -> float | None:
    """Of the series of that name with these labels, whatever others it has."""
    for line in text.splitlines():
        found = re.fullmatch(rf"ray_{name}{{(.*)}} (\S+)", line)
        if found and all(f'{k}="{v}"' in found[1] for k, v in {**labels, "run": RUN}.items()):
            return float(found[2])
    return None


def eventually(scrape: Callable[[], str], condition: Callable[[str], bool]) -> str:
    deadline = time.monotonic() + 60
    while not condition(text := scrape()):
        assert time.monotonic() < deadline, text[-3000:]
        time.sleep(0.2)
    return text


@pytest.fixture(scope="module")
def text(metrics: RunMetrics, scrape: Callable[[], str]) -> str:
    return eventually(scrape, lambda text: value(text, "fleetune_resident_bytes") == 5e9)


def test_every_metric_is_exported_with_its_help(text: str) -> None:
    helped = dict(re.findall(r"# HELP ray_(\w+) (.*)", text))
    assert {metric.name: helped.get(metric.name) for metric in ALL} == {
        metric.name: metric.text for metric in ALL
    }


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("fleetune_records_total", {"state": "committed"}, 9),
        ("fleetune_records_total", {"state": "issued"}, 12),
        ("fleetune_records", {"state": "pending"}, 3),
        ("fleetune_cycle", {}, 3),
        ("fleetune_queue_share", {}, 0.25),
        ("fleetune_stage", {"stage": "training"}, 1),
        ("fleetune_stage", {"stage": "fitting"}, 0),
        ("fleetune_learner_seconds_total", {"phase": "policy"}, 10),
        ("fleetune_learner_seconds_total", {"phase": "waiting_for_rewards"}, 1.5),
        ("fleetune_fleet_actors", {"role": "samplers", "state": "wanted"}, 3),
        ("fleetune_fleet_actors", {"role": "samplers", "state": "working"}, 1),
        ("fleetune_fleet_actors", {"role": "samplers", "state": "placing"}, 1),
        ("fleetune_images_total", {"role": "samplers", "actor": "sampler-0"}, 480),
        ("fleetune_images_total", {"role": "samplers", "actor": "sampler-2"}, 7),
        ("fleetune_worker_seconds_total", {"actor": "sampler-0", "stage": "sample"}, 30),
        ("fleetune_worker_failures_total", {"actor": "sampler-0"}, 1),
        ("fleetune_sampler_policy_version", {"actor": "sampler-0"}, 4),
        ("fleetune_curve", {"phase": "fresh", "curve": "reward_2step"}, 0.61),
        ("fleetune_reward_seconds_count", {"reward": "binding"}, 2),
        ("fleetune_reward_seconds_bucket", {"reward": "binding", "le": "0.1"}, 1),
        ("fleetune_reward_failures_total", {"reward": "binding"}, 3),
        ("fleetune_sample_staleness_versions_bucket", {"le": "0.5"}, 1),
        ("fleetune_sample_staleness_versions_bucket", {"le": "4.5"}, 2),
        ("fleetune_sample_age_seconds_count", {}, 2),
    ],
)
def test_what_is_known_can_be_read(
    text: str, name: str, labels: dict[str, str], expected: float
) -> None:
    assert value(text, name, **labels) == pytest.approx(expected)


def test_a_rate_is_no_counter_of_seconds(text: str) -> None:
    assert value(text, "fleetune_worker_seconds_total", stage="images_per") is None


def test_a_source_that_goes_back_is_counted_when_it_is_beyond(
    metrics: RunMetrics, scrape: Callable[[], str], text: str
) -> None:
    for seconds in (7.0, 2.0, 2.5, 8.0):  # of a learner that resumed after the first
        metrics.show_learner({"stage": "training", "seconds": {"restarted": seconds}})
    eventually(
        scrape,
        lambda text: value(text, "fleetune_learner_seconds_total", phase="restarted") == 8,
    )


def test_another_life_of_an_actor_counts_anew(
    metrics: RunMetrics, scrape: Callable[[], str], text: str
) -> None:
    for owner, images in (("sampler-7.0", 5), ("sampler-7.0", 7), ("sampler-7.3", 2)):
        row = {"state": "working", "owner": owner, "images": images}
        metrics.show_page({"fleets": {"samplers": {"wanted": 1, "workers": {"sampler-7": row}}}})
    eventually(scrape, lambda text: value(text, "fleetune_images_total", actor="sampler-7") == 9)


@pytest.mark.slow
def test_a_curve_stands_until_its_next_point(
    metrics: RunMetrics, scrape: Callable[[], str], text: str
) -> None:
    # Ray forgets a gauge that nobody sets; every page sets it again.
    metrics.show_curve("evaluation", {"exact_2step": 0.7})
    begun = time.monotonic()
    while time.monotonic() - begun < 25:
        metrics.show_page({})
        time.sleep(1)
    curve = {"phase": "evaluation", "curve": "exact_2step"}
    assert value(scrape(), "fleetune_curve", **curve) == 0.7
