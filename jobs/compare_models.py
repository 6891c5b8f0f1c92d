"""Compares two models on the images that both captioned.

    ./spark-submit.sh jobs/compare_models.py --scores out/scores --baseline MODEL --candidate MODEL

Reads the tables that `evaluate_captions.py` wrote at --scores. MODEL is a model_id, or MODEL:DECODE with a decode_id
where a model captioned with several decoding settings. Prints and appends to the table `comparisons`, beside the
scores, the difference of each metric with the interval and the p-value of a paired bootstrap: both models are scored on
the same draws of images. With --fail-if-worse the exit status is 1 where the candidate is significantly worse.
"""

import argparse
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from jobs.common import bootstrap, tables
from jobs.common.scores import METRICS, Evaluation, part, sum_segments, title
from jobs.common.session import OptionParser, add_endpoint, build_session, complain, exit_status, say

SIGNIFICANT = 0.05
NAMES = Evaluation(METRICS).names()

Model = tuple[str | None, str | None]  # model_id and decode_id


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OptionParser(prog="compare_models.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scores", required=True, metavar="TABLE", help="where evaluate_captions.py wrote its tables")
    parser.add_argument("--baseline", required=True, metavar="MODEL", help="model_id, or model_id:decode_id")
    parser.add_argument("--candidate", required=True, metavar="MODEL", help="the same, of what may replace it")
    parser.add_argument("--fail-if-worse", default="", metavar="METRICS",
                        help="exit with status 1 where the candidate is significantly worse"
                             f" (p < {SIGNIFICANT}) in one of these: some of {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    add_endpoint(parser)
    return parser.parse_args(arguments)


def find_model(name: str, there: Sequence[Model], role: str) -> Model:
    """The one that `name` means. Raises ValueError where there is none, or more than one."""
    found = [model for model in there if name in (model[0] or "null", named(model))]
    if len(found) != 1:
        what = "has several decodings, name one" if found else "is not among the scores, which are of"
        raise ValueError(f"{role} {name}: {what}: {', '.join(map(named, found or there))}")
    return found[0]


def named(model: Model) -> str:
    """As options name it; a null, as other tools' tables have, is null."""
    return ":".join(part or "null" for part in model)


def both_scored(segments: DataFrame, baseline: Model, candidate: Model) -> tuple[DataFrame, int]:
    """The segments of images that have a score of both, and how many images have one of only one of them."""
    chosen = segments.where(F.col("missing").isNull() & (_is(baseline) | _is(candidate)))
    counts = chosen.groupBy("image_id").agg(F.count("*").alias("scores"))
    alone = counts.where("scores = 1").count()
    return chosen.join(counts.where("scores = 2"), "image_id", how="left_semi"), alone


def compare(
    pairs: DataFrame, baseline: Model, candidate: Model, metrics: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """For each metric the columns of COMPARISONS that are figures. Raises ValueError where there are no pairs."""
    sums = {group[:2]: found for group, found in sum_segments(pairs, seed)}
    if not sums:
        raise ValueError(f"--baseline {baseline[0]} and --candidate {candidate[0]}: no image has a score of both")
    scores = [bootstrap.scores_of(sums[model]) for model in (baseline, candidate)]
    rows = []
    for metric in metrics:
        before, after = (of[metric] for of in scores)
        difference = bootstrap.interval(after - before)
        rows.append({
            "metric": metric,
            "baseline": float(before[0]),
            "candidate": float(after[0]),
            "difference": difference.score,
            "ci_low": difference.low,
            "ci_high": difference.high,
            "p_value": bootstrap.p_value(after - before),
            "n_segments": int(sums[baseline][0, 0]),
        })  # fmt: skip
    return rows


def is_worse(row: dict[str, Any]) -> bool:
    """Whether the candidate is significantly worse."""
    return row["p_value"] is not None and row["p_value"] < SIGNIFICANT and row["difference"] < 0


def describe(row: dict[str, Any]) -> str:
    """A line for people."""
    if row["p_value"] is None:
        return f"{title(row['metric']):8} -"
    return (
        f"{title(row['metric']):8} {row['baseline']:6.1f} -> {row['candidate']:6.1f}  {row['difference']:+.2f}"
        f" [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]  p {row['p_value']:.3f}"
    )


def write(spark: SparkSession, rows: list[dict[str, Any]], scores: str) -> None:
    table = tables.from_rows(spark, rows, tables.COMPARISONS)
    tables.write_table(table, part(scores, "comparisons"), mode="append")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_args(arguments)
    gates = [name for name in options.fail_if_worse.split(",") if name]
    for name in gates:
        if name not in NAMES:
            raise ValueError(f"--fail-if-worse {name}: must be one of {', '.join(NAMES)}")
    for name in ("segments", "corpus"):
        tables.check_readable(part(options.scores, name), "--scores")
    tables.check_writable(part(options.scores, "comparisons"), "--scores")
    how = Evaluation(seed=options.seed)
    spark = build_session("compare_models", options.s3_endpoint)
    corpus = tables.read_table(spark, part(options.scores, "corpus"), tables.CORPUS, role="--scores").collect()
    baseline, candidate = _models(corpus, options)
    signatures = {row["metric"]: row["signature"].split("|ci:")[0] for row in corpus}
    for name in gates:
        if name not in signatures:
            raise ValueError(
                f"--fail-if-worse {name}: the scores are without; they have {', '.join(sorted(signatures))}"
            )
    segments = tables.read_table(spark, part(options.scores, "segments"), tables.SEGMENTS, role="--scores")
    pairs, alone = both_scored(segments, baseline, candidate)
    rows = compare(pairs, baseline, candidate, [name for name in NAMES if name in signatures], options.seed)
    same = {
        **dict(zip(("baseline_model_id", "baseline_decode_id"), baseline, strict=True)),
        **dict(zip(("candidate_model_id", "candidate_decode_id"), candidate, strict=True)),
        "n_missing": alone,
        "run_id": uuid.uuid4().hex,
        "compared_at": datetime.now(UTC),
    }
    for row in rows:
        row |= same | {"signature": f"{signatures[row['metric']]}|{bootstrap.signature(how.seed)}"}
    write(spark, rows, options.scores)
    only = f", {alone} that only one captioned" if alone else ""
    say(f"{named(baseline)} -> {named(candidate)}, {rows[0]['n_segments']} images that both captioned{only}:")
    for row in rows:
        say(f"  {describe(row)}")
    worse = [row["metric"] for row in rows if row["metric"] in gates and is_worse(row)]
    if worse:
        complain(f"the candidate is significantly worse: {', '.join(worse)}")
    return 1 if worse else 0


def _models(corpus: Sequence[Row], options: argparse.Namespace) -> tuple[Model, Model]:
    there = sorted({(row["model_id"], row["decode_id"]) for row in corpus if row["n_segments"]}, key=named)
    baseline = find_model(options.baseline, there, "--baseline")
    candidate = find_model(options.candidate, there, "--candidate")
    if baseline == candidate:
        raise ValueError(f"--candidate {options.candidate}: is the baseline; choose another")
    return baseline, candidate


def _is(model: Model) -> Any:
    return tables.having(dict(zip(("model_id", "decode_id"), model, strict=True)))


if __name__ == "__main__":
    sys.exit(exit_status(main))
