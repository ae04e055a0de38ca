"""A monitor with an evaluator made by hand, which answers and fails as a test says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.evaluation.handle import EvaluatorLostError
from deploy.evaluation.monitor import Monitor
from deploy.run.files import cycle_name, kept_file, pictures_file
from deploy.run.folder import RunFolder
from deploy.run.ranks import RunFailedError
from deploy.settings.run_config import load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
SCORE = "exact_2step"
STOP = "evaluation.stop={kind: held_out_falls, patience: 2}"


class HandEvaluator:
    """Answers when the test says so, with the scores that it is given by cycle."""

    def __init__(self, folder: Path, scores: Mapping[int, float]) -> None:
        self.folder = folder
        self.scores = scores
        self.newest = 0
        self.ready = True
        self.broken = False
        self.losses = 0
        self.stays_late = False
        self.has_place = True
        self.late = False
        self.replaced = 0
        self.asked: list[int] = []
        self.exported: list[Any] = []

    def measure(self, moment: str, source: Any) -> Any:
        pictures = self.folder / "pictures"
        pictures.mkdir(exist_ok=True)
        (pictures / f"{moment}.npz").write_text(moment)
        is_last = moment in ("last", "after") and isinstance(source, list) and source
        cycle = max(self.scores) if is_last else 0
        if isinstance(source, Path):
            assert source.exists()
            cycle = int(source.stem.removeprefix("cycle-"))
        return {SCORE: self.scores[cycle]}

    def measure_newest(self, board: Any, at_least: int, *, keep: bool) -> Any:
        self.asked.append(at_least)
        pictures = pictures_file(self.folder, cycle_name(self.newest))
        pictures.parent.mkdir(exist_ok=True)
        pictures.write_text("pictures")
        if keep:
            path = kept_file(self.folder, self.newest)
            path.parent.mkdir(exist_ok=True)
            path.write_text("weights")
        return self.newest, {SCORE: self.scores[self.newest]}

    def export(self, source: Any) -> Any:
        self.exported.append(source)
        return "adapter"

    def is_ready(self, ref: Any) -> bool:
        return self.ready

    def is_late(self) -> bool:
        return self.late

    def replace(self) -> None:
        self.replaced += 1
        self.ready, self.late = not self.stays_late, self.stays_late

    def check_placed(self) -> None:
        if not self.has_place:
            raise RunFailedError("the evaluator found no place")

    def result(self, ref: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
        meanwhile()
        if self.broken:
            raise RunFailedError("no device")
        if self.losses > 0:
            self.losses -= 1
            self.replace()
            raise EvaluatorLostError("CUDA error: an illegal memory access")
        return ref


class World:
    """A run's folder, and a monitor that looks after every cycle."""

    def __init__(self, folder: Path, scores: list[float], *overrides: str) -> None:
        self.config = load_config(
            SMOKE, ["method.cycles=20", "evaluation.every_cycles=1", *overrides]
        )
        self.folder = folder
        self.evaluator = HandEvaluator(folder, dict(enumerate(scores)))
        self.stops = 0
        self.monitor = self.new_monitor()

    def new_monitor(self, *, resume: bool = False) -> Monitor:
        evaluator: Any = self.evaluator
        return Monitor(
            self.config,
            evaluator,
            RunFolder(self.folder),
            board=None,
            stop=self._count_stop,
            resume=resume,
        )

    def _count_stop(self) -> None:
        self.stops += 1

    def publish(self, version: int) -> None:
        """One more version, and time enough to evaluate it where that is due."""
        self.evaluator.newest = version
        for _ in range(3):
            self.look(version)

    def look(self, version: int) -> None:
        self.monitor.look({"published": version, "stage": "training"})

    @property
    def steps(self) -> list[int]:
        return [row["step"] for row in self.monitor.rows()]

    @property
    def kept(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "kept").glob("*"))
