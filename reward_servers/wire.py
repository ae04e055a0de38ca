"""How a reward is asked over HTTP: one POST, JSON or msgpack, lossless pictures.

    {"version": 1, "pixels": "png", "size": [height, width], "images": […], "prompts": […]}

`images` are PNG files, or with `"pixels": "raw"` the height · width · 3 bytes of RGB; msgpack holds
them as they are and JSON as base64. `metadata`, if there is any, is a list of one mapping a
picture. The answer is `reward_servers.answers` in the format of the request. Both ends parse with
`decode_request` and `decode`, which bound sizes before they allocate.
"""

import base64
import binascii
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

VERSION = 1
TYPES = {"json": "application/json", "msgpack": "application/msgpack"}
PIXELS = ("png", "raw")
MAX_SIDE = 8192
MAX_IMAGES = 1024
_MAX_PIXELS = 1 << 28  # of a request, decoded: 256 pictures of 1024 x 1024


class WireError(ValueError):
    """Bytes that are not of this protocol."""


@dataclass(frozen=True)
class Request:
    """Pictures uint8 [B, H, W, 3], B prompts, and B mappings or None."""

    images_BHWC: np.ndarray
    prompts: list[str]
    metadata: list[Mapping[str, Any]] | None = None


def encode(message: Mapping[str, Any], format: str) -> bytes:
    """A message without bytes in it, as `format`."""
    if format == "json":
        return json.dumps(message).encode()
    body: Any = msgpack.packb(message)
    return body


def decode(body: bytes, format: str) -> dict[str, Any]:
    """The mapping that a body holds.

    Raises:
        WireError: it holds none.
    """
    try:
        message = json.loads(body) if format == "json" else msgpack.unpackb(body)
    except Exception as error:  # parsers of bytes from elsewhere raise many things
        raise WireError(f"{len(body)} bytes that are no {format}: {error}"[:300]) from error
    if not isinstance(message, dict):
        raise WireError(f"{format} that holds a {type(message).__name__} and no mapping")
    return message


def encode_request(request: Request, format: str, pixels: str) -> bytes:
    """The body of a POST."""
    files = [_png(image) if pixels == "png" else image.tobytes() for image in request.images_BHWC]
    message: dict[str, Any] = {
        "version": VERSION,
        "pixels": pixels,
        "size": list(request.images_BHWC.shape[1:3]),
        "images": [base64.b64encode(f).decode() for f in files] if format == "json" else files,
        "prompts": request.prompts,
    }
    if request.metadata is not None:
        message["metadata"] = request.metadata
    return encode(message, format)


def decode_request(body: bytes, format: str) -> Request:
    """What a body asks.

    Raises:
        WireError: it asks nothing, or more than is allowed; the message says what is.
    """
    message = decode(body, format)
    if message.get("version") != VERSION:
        raise WireError(f"version is {message.get('version')!r}; it must be {VERSION}")
    prompts, files = _texts(message.get("prompts")), message.get("images")
    if not isinstance(files, list) or len(files) != len(prompts) or len(files) > MAX_IMAGES:
        raise WireError(f"{len(prompts)} prompts need as many images, at most {MAX_IMAGES}")
    height, width = _size(message.get("size"), len(files))
    read = {"png": _from_png, "raw": _from_raw}.get(str(message.get("pixels")))
    if read is None:
        raise WireError(f"pixels is {message.get('pixels')!r}; allowed are {', '.join(PIXELS)}")
    images_BHWC = np.empty((len(files), height, width, 3), np.uint8)
    for row, file in enumerate(files):
        images_BHWC[row] = read(_bytes(file, format), height, width)
    return Request(images_BHWC, prompts, _metadata(message.get("metadata"), len(files)))


def _texts(prompts: object) -> list[str]:
    if not isinstance(prompts, list) or not all(isinstance(each, str) for each in prompts):
        raise WireError("prompts must be a list of texts")
    return prompts


def _size(size: object, count: int) -> tuple[int, int]:
    if not isinstance(size, list) or len(size) != 2 or not all(type(s) is int for s in size):
        raise WireError(f"size is {size!r}; it must be [height, width]")
    height, width = size
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE) or count * height * width > (
        _MAX_PIXELS
    ):
        raise WireError(
            f"{count} pictures of {height} x {width}; a side has up to {MAX_SIDE} pixels and a "
            f"request {_MAX_PIXELS}"
        )
    return height, width


def _metadata(metadata: object, count: int) -> list[Mapping[str, Any]] | None:
    if metadata is None:
        return None
    if not isinstance(metadata, list) or len(metadata) != count:
        raise WireError(f"metadata must be a list of {count} mappings")
    if not all(isinstance(each, dict) for each in metadata):
        raise WireError("metadata must hold mappings")
    return metadata


def _bytes(file: object, format: str) -> bytes:
    if format == "json":
        if not isinstance(file, str):
            raise WireError("an image in JSON must be a text of base64")
        try:
            return base64.b64decode(file, validate=True)
        except (binascii.Error, ValueError) as error:
            raise WireError(f"an image is no base64: {error}") from error
    if not isinstance(file, bytes):
        raise WireError("an image in msgpack must be bytes")
    return file


def _png(image_HWC: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image_HWC).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def _from_png(file: bytes, height: int, width: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
            if image.mode != "RGB" or image.size != (width, height):
                raise WireError(
                    f"an image is {image.mode} {image.size}; it must be RGB {width, height}"
                )
            return np.asarray(image)
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"an image is no PNG: {error}"[:300]) from error


def _from_raw(file: bytes, height: int, width: int) -> np.ndarray:
    if len(file) != height * width * 3:
        raise WireError(f"an image has {len(file)} bytes; {height * width * 3} are its pixels")
    return np.frombuffer(file, np.uint8).reshape(height, width, 3)
