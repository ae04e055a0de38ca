"""The manifests of a cluster: valid by Kubernetes' and KubeRay's schemas, and of one mind."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from deploy.settings.run_config import RunConfig, load_config
from tests.schemas.reduce import FOLDER as SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
_PREFIX = "kubernetes.json#/$defs/io.k8s.api."
SCHEMA_OF = {
    "RayCluster": "kuberay.json#/$defs/RayCluster",
    "RayJob": "kuberay.json#/$defs/RayJob",
    "Service": f"{_PREFIX}core.v1.Service",
    "PersistentVolumeClaim": f"{_PREFIX}core.v1.PersistentVolumeClaim",
    "StatefulSet": f"{_PREFIX}apps.v1.StatefulSet",
    "NetworkPolicy": f"{_PREFIX}networking.v1.NetworkPolicy",
    "PodDisruptionBudget": f"{_PREFIX}policy.v1.PodDisruptionBudget",
}
REGISTRY: Registry[Any] = Registry().with_resources(
    (name, Resource.from_contents(json.loads((SCHEMAS / name).read_text()), DRAFT202012))
    for name in ("kubernetes.json", "kuberay.json")
)
SPOT = {
    "cloud.google.com/gke-spot",
    "eks.amazonaws.com/capacityType",
    "karpenter.sh/capacity-type",
    "kubernetes.azure.com/scalesetpriority",
}


def documents() -> dict[str, dict[str, Any]]:
    """By file, kind and name."""
    return {
        f"{path.stem}/{each['kind']}/{each['metadata']['name']}": each
        for path in sorted(FOLDER.glob("*.yaml"))
        for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    }


DOCUMENTS = documents()
JOB = DOCUMENTS["rayjob/RayJob/fleetune-aesthetic"]["spec"]
CLUSTER = DOCUMENTS["raycluster/RayCluster/fleetune"]["spec"]
REDIS = DOCUMENTS["redis/StatefulSet/fleetune-redis"]["spec"]["template"]["spec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
PODS = {
    "head": CLUSTER["headGroupSpec"]["template"]["spec"],
    **{name: group["template"]["spec"] for name, group in GROUPS.items()},
}


def problems(document: dict[str, Any]) -> list[str]:
    """What the schema of its kind has against a manifest."""
    if document["kind"].startswith("Ray"):
        part, asked = document["spec"], SCHEMA_OF[document["kind"]]
    else:
        part, asked = document, SCHEMA_OF[document["kind"]]
    found = Draft202012Validator({"$ref": asked}, registry=REGISTRY).iter_errors(part)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_manifest_is_valid(name: str) -> None:
    assert problems(DOCUMENTS[name]) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("minReplica", 1),
        ("maxReplicas", "16"),
        ("template.spec.tolerations.0.efect", "NoSchedule"),
        ("template.spec.containers.0.env.0", {"value": "nameless"}),
        ("template.spec.containers", None),
    ],
)
def test_the_schemas_refuse_what_an_api_server_would(path: str, value: object) -> None:
    document = yaml.safe_load((FOLDER / "raycluster.yaml").read_text())
    place: Any = document["spec"]["workerGroupSpecs"][0]
    *parents, last = path.split(".")
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    place[int(last) if last.isdigit() else last] = value
    assert problems(document)


def test_the_job_brings_the_cluster_that_stands_alone() -> None:
    assert JOB["rayClusterSpec"] == CLUSTER


def test_ray_and_the_image_are_those_of_the_project() -> None:
    (ray,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert CLUSTER["rayVersion"] == ray
    images = {pod["containers"][0]["image"] for pod in PODS.values()}
    assert {image.rpartition(":")[2] for image in images} == {f"{VERSION}-cuda"}
    assert len(images) == 1


def test_processes_are_the_user_of_the_image() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.M)
    for pod in PODS.values():
        context = pod["securityContext"]
        assert (context["runAsUser"], context["runAsNonRoot"]) == (int(user), True)


def test_the_code_that_is_submitted_is_where_the_image_has_it() -> None:
    (folder,) = set(
        re.findall(r"^WORKDIR (\S+)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.M)
    )
    assert yaml.safe_load(JOB["runtimeEnvYAML"]) == {"working_dir": folder}


def test_only_samplers_may_be_on_spot_machines() -> None:
    for name, pod in PODS.items():
        tolerated = {each["key"] for each in pod.get("tolerations", [])} & {*SPOT, "spot"}
        assert bool(tolerated) == (name == "sampler"), name
    for pod in (*(PODS[name] for name in PODS.keys() - {"sampler"}), REDIS):
        rules = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        refused = rules["nodeSelectorTerms"][0]["matchExpressions"]
        assert {each["key"] for each in refused if each["operator"] == "NotIn"} == SPOT


def test_the_sampler_group_grows_and_shrinks_and_the_learner_stays() -> None:
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert GROUPS["sampler"]["minReplicas"] < GROUPS["sampler"]["maxReplicas"]
    assert GROUPS["learner"]["minReplicas"] == GROUPS["learner"]["maxReplicas"]


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_given_as_much_as_it_asks_for_and_is_never_restarted(name: str) -> None:
    # Ray takes a node's size from the limits, and Kubernetes places by the requests; a restarted
    # container would be another Ray node under an old name.
    resources = PODS[name]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert PODS[name]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", ["sampler", "reward"])
def test_a_pod_that_ends_has_time_to_leave(name: str) -> None:
    command = PODS[name]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python", "-m", "deploy.fleet.leave"]
    within = int(command[command.index("--within") + 1])
    assert within < PODS[name]["terminationGracePeriodSeconds"]


def test_a_stopped_job_has_time_to_save_and_its_pod_more() -> None:
    env = {each["name"]: each for each in PODS["head"]["containers"][0]["env"]}
    wait = int(env["RAY_JOB_STOP_WAIT_TIME_S"]["value"])
    assert 3 < wait < PODS["head"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", ["head", "learner"])
def test_ray_ends_nothing_on_a_pod_before_the_job_has_had_its_time(name: str) -> None:
    env = {each["name"]: each.get("value") for each in PODS[name]["containers"][0]["env"]}
    head = {each["name"]: each.get("value") for each in PODS["head"]["containers"][0]["env"]}
    drains_s = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] or 0)
    stops_s = int(head["RAY_JOB_STOP_WAIT_TIME_S"] or 0)
    assert stops_s < drains_s < PODS[name]["terminationGracePeriodSeconds"]


def secrets() -> Iterator[tuple[str, str]]:
    """Name and key of every secret that a pod reads."""
    for pod in (*PODS.values(), REDIS):
        for variable in pod["containers"][0].get("env", []):
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                yield reference["name"], reference["key"]
        for volume in pod["volumes"]:
            if (secret := volume.get("secret")) is not None:
                yield secret["secretName"], ""


def test_secrets_are_read_by_reference_and_the_readme_makes_each() -> None:
    for pod in PODS.values():
        env = {each["name"]: each for each in pod["containers"][0]["env"]}
        assert "secretKeyRef" in env["RAY_AUTH_TOKEN"]["valueFrom"]
    head = {each["name"]: each for each in PODS["head"]["containers"][0]["env"]}
    assert "secretKeyRef" in head["REDIS_URL"]["valueFrom"]
    for name, key in set(secrets()):
        (made,) = re.findall(rf"create secret generic {name} ((?:.*\\\n)*.*)", README)
        assert f"{key}=" in made, (name, key)


def test_the_operator_and_the_nodes_have_one_token() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "fleetune-ray-auth"}
    assert ("fleetune-ray-auth", "auth_token") in set(secrets())


def test_every_volume_that_is_mounted_is_there() -> None:
    for pod in (*PODS.values(), REDIS):
        mounted = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
        assert mounted - {"data"} == {each["name"] for each in pod["volumes"]}
    claim = PODS["head"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert f"storage/PersistentVolumeClaim/{claim}" in DOCUMENTS


def test_redis_has_its_config_where_that_looks_for_its_files() -> None:
    config = (ROOT / "deploy" / "redis" / "redis.conf").read_text()
    mounts = {each["mountPath"] for each in REDIS["containers"][0]["volumeMounts"]}
    paths = re.findall(r"^(?:tls-\S+-file|aclfile|dir) (\S+)$", config, re.M)
    assert len(paths) == 5
    assert {path for path in paths if path not in mounts} == {
        f"{mount}/{name}"
        for mount, names in (
            ("/etc/fleetune/tls", ("tls.crt", "tls.key", "ca.crt")),
            ("/etc/fleetune/acl", ("users.acl",)),
        )
        for name in names
    }
    assert "/etc/fleetune/redis.conf" in mounts


def test_redis_has_twice_the_memory_of_its_maxmemory() -> None:
    config = (ROOT / "deploy" / "redis" / "redis.conf").read_text()
    (gigabytes,) = re.findall(r"^maxmemory (\d+)gb$", config, re.M)
    limit = REDIS["containers"][0]["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) == 2 * int(gigabytes)


def planned() -> RunConfig:
    """The config of the job's command line."""
    words = shlex.split(JOB["entrypoint"])
    assert words[:4] == ["python", "-m", "deploy.launch", "--or-resume"]
    return load_config(ROOT / words[4], words[5:])


def test_every_role_of_the_job_asks_for_a_group_of_the_cluster() -> None:
    config = planned()
    offered = {name: group["labels"] for name, group in GROUPS.items()}
    assert config.actors.node_labels == offered["sampler"]
    assert config.scoring.node_labels == offered["reward"]
    assert config.evaluation.node_labels == offered["reward"]
    assert config.learner.node_labels == offered["learner"]


def test_the_samplers_of_the_job_may_be_as_many_as_the_cluster_can_hold() -> None:
    config = planned()
    assert config.actors.auto == (1, GROUPS["sampler"]["maxReplicas"])


def test_every_command_of_the_readme_names_files_that_are_there() -> None:
    named = set(
        re.findall(r"deploy/[\w./-]+\.(?:yaml|conf|acl|md)|deploy/docker/Dockerfile", README)
    )
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_what_tries_cost_is_told_and_how_to_have_fewer() -> None:
    assert f"`backoffLimit: {JOB['backoffLimit']}`" in README
    for bound in ("backoffLimit", "activeDeadlineSeconds"):
        assert f"`{bound}" in README
        assert problems({"kind": "RayJob", "spec": {**JOB, bound: 0}}) == []
