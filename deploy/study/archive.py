"""What a study's finished runs have measured, in one file to publish or to go on from elsewhere.

Unpacked into a folder of runs, the study's command makes every table and curve of it again, without
the pictures, and runs what is missing.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from deploy.diagnosis import DIAGNOSIS_FILE
from deploy.run.files import BEFORE_FILE, CONFIG_FILE, METRICS_FILE, SUMMARY_FILE
from deploy.run.whole_files import replacing
from deploy.study.file import Cell
from deploy.study.tuning import TUNING_FILE

ARCHIVE_FILE = "runs.tar.xz"


def write_archive(cells: Iterable[Cell], folder: Path) -> None:
    """Settings, curves and summary of those that are finished, a folder each, and what their study
    has chosen and diagnosed; the same runs are the same bytes. Weights and pictures stay where they
    are.

    Args:
        folder: the study's, where the archive comes to lie.
    """
    path = folder / ARCHIVE_FILE
    with replacing(path) as partial, tarfile.open(partial, "w:xz") as archive:
        for name in (TUNING_FILE, DIAGNOSIS_FILE):
            _add_file(archive, f"{folder.name}/{name}", folder / name)
        for cell in cells:
            if (told := cell.summary) is None:
                continue
            # It says where the run's weights lie, which are not here.
            summary = json.dumps({**told, "exported": None}, indent=2).encode()
            _add(archive, f"{cell.config.name}/{SUMMARY_FILE}", summary)
            for name in (CONFIG_FILE, BEFORE_FILE, METRICS_FILE):
                _add_file(archive, f"{cell.config.name}/{name}", cell.folder / name)


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    """If it is there."""
    if path.is_file():
        _add(archive, name, path.read_bytes())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
