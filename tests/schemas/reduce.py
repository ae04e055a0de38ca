"""Makes the schemas beside this file from Kubernetes' and KubeRay's own.

    pip download --no-deps kubernetes-validate==1.37.0
    unzip kubernetes_validate-1.37.0-*.whl -d unpacked
    python -m tests.schemas.reduce kubernetes \
        unpacked/kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict/_definitions.json
    python -m tests.schemas.reduce kuberay ray.io_rayclusters.yaml ray.io_rayjobs.yaml

Kept are types, required fields, allowed values and bounds of the kinds that `deploy/kuberay` uses;
left out are descriptions and what only an API server reads. A field that no schema names is an
error, as with `kubectl apply --validate=strict`. In a CRD, Kubernetes' own types are written out
in full in every place; here they are references into `kubernetes.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
KINDS = (
    "apps.v1.StatefulSet",
    "core.v1.EnvFromSource",
    "core.v1.PersistentVolumeClaim",
    "core.v1.Secret",
    "core.v1.Service",
    "networking.v1.NetworkPolicy",
    "policy.v1.PodDisruptionBudget",
)
_PREFIX = "io.k8s.api."
_KEPT = frozenset(
    {
        "$ref", "additionalProperties", "anyOf", "enum", "items", "maximum", "minItems", "minimum",
        "oneOf", "properties", "required", "type",
    }
)  # fmt: skip
# Of a CRD: the field, and the type of Kubernetes that is written out below it.
BORROWED = {
    "template": "core.v1.PodTemplateSpec",
    "submitterPodTemplate": "core.v1.PodTemplateSpec",
    "headService": "core.v1.Service",
    "valueFrom": "core.v1.EnvVarSource",
    "securityContext": "core.v1.SecurityContext",
}
BORROWED_LISTS = {
    "env": "core.v1.EnvVar",
    "envFrom": "core.v1.EnvFromSource",
    "volumeMounts": "core.v1.VolumeMount",
}


def reduced(schema: Any) -> Any:
    """A schema without what no test asks; names of properties are no keywords."""
    if isinstance(schema, list):
        return [reduced(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: reduced(each) for name, each in value.items()}
        if key == "properties"
        else (reduced(value) if key not in ("enum", "required") else value)
        for key, value in schema.items()
        if key in _KEPT
    }


def references(schema: Any) -> set[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(schema, list):
        return set().union(*map(references, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].rpartition("/")[2]} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(references, schema.values()))


def kubernetes(definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions that the kinds reach."""
    waiting, kept = [_PREFIX + kind for kind in KINDS], {}
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept[name] = reduced(definitions[name])
            waiting += references(kept[name])
    return {"$defs": dict(sorted(kept.items()))}


def kuberay(crds: list[dict[str, Any]]) -> dict[str, Any]:
    """The spec of every CRD's version v1, by its kind."""
    specs = {}
    for crd in crds:
        (version,) = (each for each in crd["spec"]["versions"] if each["name"] == "v1")
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        specs[crd["spec"]["names"]["kind"]] = closed(borrowing(reduced(spec)))
    return {"$defs": specs}


def borrowing(schema: Any, name: str = "") -> Any:
    """References in place of the types of Kubernetes."""
    if name in BORROWED and "properties" in schema:
        return to_kubernetes(BORROWED[name])
    if name in BORROWED_LISTS and schema.get("type") == "array":
        return {"type": "array", "items": to_kubernetes(BORROWED_LISTS[name])}
    if name == "resources" and "limits" in schema.get("properties", {}):
        return to_kubernetes("core.v1.ResourceRequirements")
    if "properties" in schema:
        parts = {each: borrowing(part, each) for each, part in schema["properties"].items()}
        return {**schema, "properties": parts}
    return {**schema, "items": borrowing(schema["items"])} if "items" in schema else schema


def closed(schema: Any) -> Any:
    """Objects allow no more than the fields that they name."""
    if "properties" in schema:
        parts = {name: closed(part) for name, part in schema["properties"].items()}
        return {**schema, "properties": parts, "additionalProperties": False}
    return {**schema, "items": closed(schema["items"])} if "items" in schema else schema


def to_kubernetes(name: str) -> dict[str, str]:
    return {"$ref": f"kubernetes.json#/$defs/{_PREFIX}{name}"}


def write(name: str, schema: dict[str, Any]) -> None:
    """One definition a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(each)}" for key, each in schema["$defs"].items()]
    (FOLDER / name).write_text('{"$defs": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    kind, *paths = arguments
    texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    if kind == "kubernetes":
        write("kubernetes.json", kubernetes(json.loads(texts[0])["$defs"]))
    else:
        write("kuberay.json", kuberay([yaml.safe_load(text) for text in texts]))


if __name__ == "__main__":
    main(sys.argv[1:])
