"""What the reduction of a schema keeps, on small ones made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.schemas.reduce import FOLDER, kuberay, kubernetes, references

QUANTITY = {"oneOf": [{"type": "string"}, {"type": "integer"}], "description": "1Gi"}


def crd(spec: dict[str, Any]) -> dict[str, Any]:
    """A CustomResourceDefinition with two versions, as controller-gen writes it."""
    return {
        "spec": {
            "names": {"kind": "RayThing"},
            "versions": [
                {"name": name, "schema": {"openAPIV3Schema": {"properties": {"spec": part}}}}
                for name, part in (("v1alpha1", {"type": "string"}), ("v1", spec))
            ],
        }
    }


def test_what_only_a_server_or_a_reader_needs_is_left_out_but_no_property_of_that_name() -> None:
    spec = {
        "type": "object",
        "description": "text",
        "x-kubernetes-map-type": "atomic",
        "properties": {"description": {"type": "string", "format": "date", "default": "x"}},
        "required": ["description"],
    }
    assert kuberay([crd(spec)])["$defs"]["RayThing"] == {
        "type": "object",
        "properties": {"description": {"type": "string"}},
        "required": ["description"],
        "additionalProperties": False,
    }


def test_a_type_of_kubernetes_that_is_written_out_becomes_a_reference() -> None:
    pod = {"type": "object", "properties": {"spec": {"type": "object"}}}
    env = {"type": "array", "items": {"type": "object", "properties": {"name": {}}}}
    spec = {
        "type": "object",
        "properties": {"groups": {"items": {"properties": {"template": pod}}}},
    }
    spec["properties"]["env"] = env
    spec["properties"]["resources"] = {"type": "object", "additionalProperties": {"type": "string"}}
    parts = kuberay([crd(spec)])["$defs"]["RayThing"]["properties"]
    template = parts["groups"]["items"]["properties"]["template"]
    assert template == {"$ref": "kubernetes.json#/$defs/io.k8s.api.core.v1.PodTemplateSpec"}
    assert parts["env"]["items"] == {"$ref": "kubernetes.json#/$defs/io.k8s.api.core.v1.EnvVar"}
    assert parts["resources"] == spec["properties"]["resources"]


def test_definitions_that_no_kind_reaches_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.schemas.reduce.KINDS", ("core.v1.Secret",))
    definitions = {
        "io.k8s.api.core.v1.Secret": {"properties": {"size": {"$ref": "#/$defs/Quantity"}}},
        "Quantity": QUANTITY,
        "io.k8s.api.core.v1.Pod": {"type": "object"},
    }
    kept = kubernetes(definitions)["$defs"]
    assert kept.keys() == {"io.k8s.api.core.v1.Secret", "Quantity"}
    assert kept["Quantity"] == {"oneOf": QUANTITY["oneOf"]}


@pytest.mark.parametrize("name", ["kubernetes.json", "kuberay.json"])
def test_every_reference_of_a_shipped_schema_is_answered(name: str) -> None:
    shipped = json.loads((FOLDER / name).read_text())
    answers = json.loads((FOLDER / "kubernetes.json").read_text())["$defs"]
    assert references(shipped) - answers.keys() == set()


def test_the_shipped_schemas_are_small() -> None:
    assert sum(Path(path).stat().st_size for path in FOLDER.glob("*.json")) < 100_000
