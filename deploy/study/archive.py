"""What a study's finished runs have measured, in one file to publish or to go on from elsewhere.

Unpacked into a folder of runs, the study's command makes every table and curve of it again, and
runs what is missing.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from deploy.run.files import BEFORE_FILE, CONFIG_FILE, METRICS_FILE, SUMMARY_FILE
from deploy.run.whole_files import replacing
from deploy.study.file import Cell

ARCHIVE_FILE = "runs.tar.xz"


def write_archive(cells: Iterable[Cell], path: Path) -> None:
    """Settings, curves and summary of those that are finished, a folder each; the same runs are
    the same bytes. Weights and pictures stay where they are."""
    with replacing(path) as partial, tarfile.open(partial, "w:xz") as archive:
        for cell in cells:
            if (told := cell.summary) is None:
                continue
            # It says where the run's weights lie, which are not here.
            summary = json.dumps({**told, "exported": None}, indent=2).encode()
            _add(archive, f"{cell.config.name}/{SUMMARY_FILE}", summary)
            for name in (CONFIG_FILE, BEFORE_FILE, METRICS_FILE):
                file = cell.folder / name
                if file.is_file():
                    _add(archive, f"{cell.config.name}/{name}", file.read_bytes())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
