"""How long a run takes that has next to nothing to do: the samples, captioned by the launcher.

    .venv/bin/python tests/bench/bench_start.py --rounds 3

runs it with the classes that `./spark-submit.sh --setup` archived, then with Java reading them from the jars, in turn,
and prints the shortest time of each, from the command to its end.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = {"classes archived": "-Dnone", "classes read from jars": "-XX:SharedArchiveFile=none"}


def run(java_option: str) -> float:
    """Seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [ROOT / "spark-submit.sh", "--driver-java-options", java_option, "jobs/caption_images.py"]
        started = time.perf_counter()
        subprocess.run([*command, "--captions", f"{folder}/captions"], check=True, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default 3)")
    options = parser.parse_args()
    if not list(ROOT.glob("build/classes-*.jsa")):
        parser.error("no classes are archived: run ./spark-submit.sh --setup first")
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind, java_option in KINDS.items():
            seconds[kind].append(run(java_option))
    for kind, found in seconds.items():
        print(f"{kind:24} {min(found):5.1f} s")
    archived, read = map(min, seconds.values())
    print(f"{read / archived:.2f} times as long without the archive")


if __name__ == "__main__":
    main()
