"""How much memory the executors of a standalone cluster on this machine hold."""

import re
from collections import Counter
from pathlib import Path
from threading import Event, Thread

import psutil

Held = dict[tuple[str, str], int]  # bytes, of a worker's folder and a kind of process: java or python


class Memory:
    """What executors' processes hold in real memory, each shared page told to all that share it in parts, sampled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.most: Held = {}
        self._done = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            for of, size in self._sizes().items():
                self.most[of] = max(self.most.get(of, 0), size)

    def _sizes(self) -> Held:
        """Of each executor its Java process, and its Python processes together."""
        sizes = Counter[tuple[str, str]]()
        for process in psutil.process_iter():
            try:
                place = Path(process.cwd())
                if self.folder not in place.parents or "work" not in place.parts:
                    continue
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                kind = "java" if process.name() == "java" else "python"
            except (psutil.Error, OSError):
                continue
            pages = re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
            sizes[place.relative_to(self.folder).parts[0], kind] += int(pages[1]) * 1024 if pages else 0
        return sizes

    def wave(self) -> Held:
        """The most that was held since this was last asked."""
        most, self.most = self.most, {}
        return most


def growth(held: list[Held]) -> str:
    """How much more each kind of process held at most after the first wave than in it."""
    return ", ".join(
        f"{' '.join(of)} {(max(wave.get(of, 0) for wave in held[1:]) - first) / 1e6:+.0f} MB"
        for of, first in sorted(held[0].items())
    )
