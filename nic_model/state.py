"""The folder of a training: what it needs to go on after an interruption, and what people look at."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

SETTINGS = "settings.json"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Notes that what will be in `folder` is made with `settings`. Raises ValueError where what is there, a state or
    features of an encoder, was made with others, or does not say with which."""
    note = json.dumps(settings, sort_keys=True, indent=2)
    if not any(file.suffix in (".pt", ".npy") for file in folder.glob("*")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(note, encoding="utf-8")
    elif not (folder / SETTINGS).exists() or (folder / SETTINGS).read_text(encoding="utf-8") != note:
        raise ValueError(f"{folder} holds a training with other settings or data: remove it, or choose another --out")


def write_curves(folder: Path, history: Sequence[Mapping[str, Any]], captions: Iterable[tuple[str, str]]) -> None:
    """history.csv, a row an epoch, and captions.csv, the dev images' `captions` in the last one, each with its
    image_id."""
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(history[0]))
        table.writeheader()
        table.writerows(history)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_id", "caption"), *captions])


def save_atomically(value: Any, file: Path) -> None:
    """torch.save, whole or not at all."""
    with written_whole(file) as out:
        torch.save(value, out)


@contextmanager
def written_whole(file: Path) -> Iterator[BinaryIO]:
    """For writing `file`, which is there only once all is written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as out:
        yield out
    part.replace(file)
