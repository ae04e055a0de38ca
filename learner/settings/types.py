"""What the sections of a config are made of: kinds of numbers, and how a section refuses.

One frozen model a section; a field's docstring is its documentation, and its default stands there
and nowhere else. Nothing in this package imports torch, so a config error costs no start-up time.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _is_booked_by_ray(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"is a part of one GPU, or a whole number of them, given {value}")
    return value


Gpus = Annotated[NonNegative, AfterValidator(_is_booked_by_ray)]
_LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_./-]{0,61}[a-zA-Z0-9])?")


def _are_labels(value: dict[str, str]) -> dict[str, str]:
    for text in (*value, *value.values()):
        if not _LABEL.fullmatch(text):
            raise ValueError(
                f"names labels of Ray nodes, such as {{fleetune-role: sampler}}: at most 63 "
                f"letters, digits, '-', '_', '.' and '/', given {text!r}"
            )
    return value


NodeLabels = Annotated[dict[str, str], AfterValidator(_are_labels)]
"""What `ray start --labels`, or a group of KubeRay, says of a node."""
Precision = Literal["fp32", "bf16", "auto"]
"""auto: bf16 where the device has instructions for it."""


class Section(BaseModel):
    """What every section shares: no unknown key, no change after loading."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        validate_default=True,
        protected_namespaces=(),
    )


def refuse_unused(section: Section, names: Sequence[str], because: str, remedy: str) -> None:
    """Refuses settings that would be set in vain.

    Args:
        names: fields that mean nothing here, and may have their defaults alone; `a.b`: of a
            section within.

    Raises:
        ValueError: one has another value.
    """
    found = []
    for name in names:
        *within, field = name.split(".")
        holder = section
        for part in within:
            holder = getattr(holder, part)
        if getattr(holder, field) != type(holder).model_fields[field].default:
            found.append(name)
    if found:
        them = "it" if len(found) == 1 else "them"
        raise ValueError(f"{', '.join(found)}: {because}; leave {them} out, or {remedy}")
