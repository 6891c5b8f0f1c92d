"""Scores captions against references and writes the score tables.

    ./spark-submit.sh jobs/evaluate_captions.py --captions out/captions --references REFERENCES --scores out/scores

Reads a captions table and a references table (`image_id`, `captions`). Writes `segments`, a row for each image, model
and decoding, and `corpus`, a row for each model, decoding and metric (their columns: `jobs/common/tables.py`); with
--by, `slices`, the same for each value of a column; with CIDEr, `document_frequencies`. Images that lack a caption or
references are listed in `segments` and counted in `corpus`. The runs table beside the captions gets a row.
"""

import argparse
import glob
import json
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from jobs.common import scores, tables
from jobs.common.frequencies import OPTION
from jobs.common.segments import CAPTION_LENGTH
from jobs.common.session import OptionParser, add_endpoint, build_session, exit_status, say


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OptionParser(prog="evaluate_captions.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--captions", required=True, metavar="TABLE", help="captions table: a path or a catalog name")
    parser.add_argument(
        "--references", required=True, metavar="TABLE", help="image_id and captions, an array of strings"
    )
    parser.add_argument("--scores", required=True, metavar="TABLE", help="where segments and corpus are written")
    parser.add_argument("--metrics", default=",".join(scores.METRICS), metavar="NAMES",
                        help=f"some of {', '.join(scores.METRICS)}, with commas between (default: all)")  # fmt: skip
    parser.add_argument("--by", default="", metavar="COLUMNS",
                        help="also score the images of each value of these columns of the references table; or"
                             f" {CAPTION_LENGTH}: by the words of the caption")  # fmt: skip
    parser.add_argument(OPTION, metavar="TABLE",
                        help="CIDEr's, as an evaluation wrote them (default: those of the images scored)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the intervals (default 0)")
    add_endpoint(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_args(arguments)
    evaluation = scores.Evaluation(
        tuple(filter(None, options.metrics.split(","))),
        tuple(dict.fromkeys(filter(None, options.by.split(",")))),
        options.document_frequencies,
        options.seed,
    )
    if options.document_frequencies:
        tables.check_readable(options.document_frequencies, OPTION)
    tables.check_readable(options.captions, "--captions")
    tables.check_readable(options.references, "--references")
    scores.check_writable(options.scores, options.captions, options.references)
    spark = build_session("evaluate_captions", options.s3_endpoint)
    run_id, started, clock = uuid.uuid4().hex, datetime.now(UTC), time.monotonic()
    found = scores.evaluate(spark, options.captions, options.references, options.scores, run_id, evaluation)
    seconds = time.monotonic() - clock
    for score in found:
        say(scores.describe(score))
    names = ["segments", "corpus", *(["slices"] if evaluation.by else [])]
    say(f"in brackets 95 % intervals; written to {', '.join(scores.part(options.scores, name) for name in names)}")
    counts = {"ok": sum(s.n_segments for s in found), "missing": sum(s.n_missing for s in found)}
    run = {
        "run_id": run_id,
        "job": "evaluate_captions",
        "started_at": started,
        "seconds": seconds,
        "n_images": sum(counts.values()),
        "images_per_second": sum(counts.values()) / seconds,
        "counts": counts,
        "source": options.captions,
        "target": options.scores,
        "options": json.dumps(vars(options), sort_keys=True),
    }
    # Beside a glob of captions there is no one place.
    tables.append_run(spark, options.scores if glob.has_magic(options.captions) else options.captions, run)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
