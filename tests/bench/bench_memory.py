"""Memory of the Python workers of a machine, each with the model's weights to itself, or mapped from one file.

    .venv/bin/python tests/bench/bench_memory.py --workers 4

starts so many processes that load the model as Spark's workers do and caption a few images, and prints, of each kind,
MiB a process: of it alone (private), and with its part of what they share (proportional). The first row is of processes
that have loaded the libraries and no model.
"""

import argparse
import multiprocessing
import pickle
import statistics
import sys
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import psutil
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from nic_model.captioner import Captioner  # noqa: E402
from nic_model.mapping import MappedModel  # noqa: E402
from nic_model.model_files import ModelFiles  # noqa: E402


def work(kind: str, folder: Path, model_id: str, engine: str, loaded: Barrier, measured: Barrier) -> None:
    torch.set_num_threads(1)

    def broadcast() -> ModelFiles:
        files: ModelFiles = pickle.loads((folder / "broadcast").read_bytes())
        return files

    held = []
    if kind != "none":
        files = broadcast() if kind == "copied" else MappedModel(folder, model_id, broadcast)
        captioner = Captioner(files, device="cpu", batch_size=8, engine=engine)
        size = files.settings()[0].image_size
        captioner.search(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, size, size), np.uint8)))
        held = [files, captioner]
    loaded.wait()
    measured.wait()
    del held


def measure(kind: str, options: argparse.Namespace, folder: Path, model_id: str) -> tuple[float, float]:
    """MiB a process: private, proportional."""
    context = multiprocessing.get_context("spawn")
    loaded, measured = context.Barrier(options.workers + 1), context.Barrier(options.workers + 1)
    arguments = (kind, folder, model_id, options.engine, loaded, measured)
    processes = [context.Process(target=work, args=arguments) for _ in range(options.workers)]
    for process in processes:
        process.start()
    loaded.wait(300)
    found = [psutil.Process(process.pid).memory_full_info() for process in processes]
    measured.wait(300)
    for process in processes:
        process.join()
    return tuple(statistics.mean(getattr(each, name) for each in found) / 2**20 for name in ("uss", "pss"))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "attention")
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    files = ModelFiles.read(options.model.resolve())
    print(f"{options.workers} processes, {options.model.name}, engine {options.engine}; MiB a process")
    print(f"{'weights':10}{'private':>10}{'proportional':>14}")
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "broadcast").write_bytes(pickle.dumps(files))
        for kind in ("none", "copied", "mapped"):
            private, proportional = measure(kind, options, Path(temporary), files.model_id)
            print(f"{kind:10}{private:10.0f}{proportional:14.0f}")


if __name__ == "__main__":
    main()
