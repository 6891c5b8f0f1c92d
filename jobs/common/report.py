"""What a report says of a captions table, computed by Spark, and the page made of it."""

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jinja2
from markupsafe import Markup
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.window import Window

from jobs.common import charts, tables
from jobs.common.scores import title

EXAMPLES, RUNS, WORDS, REPEATED, MODELS = 5, 10, 20, 10, 5  # of each at most so many are shown
# What stands first in the page and orders the gallery, best first, where the score tables have it.
MAIN = ("cider", "rouge_l", "bleu_4")
LOG_PROB = "log_prob"
BINS = 20
CIDER_TOP = 300  # single images reach 1000, but few go beyond this

Rows = Sequence[Mapping[str, Any]]


@dataclass
class Report:
    """All that the page shows. Counts and distributions are of the whole table, `images` of a selection."""

    location: str
    model_id: str
    decode_id: str
    counts: dict[str, int]  # images by status
    language: Mapping[str, Any]  # n_words and n_captions: different ones; mean_length of a caption
    lengths: list[tuple[float, int]]  # words in a caption, images
    words: list[tuple[str, int]]
    repeated: list[tuple[str, int]]
    failures: list[dict[str, Any]]
    runs: list[Row] = field(default_factory=list)  # newest first
    models: list[dict[str, Any]] = field(default_factory=list)  # of the corpus table, this one first
    metrics: list[str] = field(default_factory=list)  # of single images
    histograms: list[tuple[str, float, list[tuple[float, int]]]] = field(default_factory=list)  # metric, step, bins
    images: list[dict[str, Any]] = field(default_factory=list)
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def n_images(self) -> int:
        return sum(self.counts.values())

    @property
    def n_ok(self) -> int:
        return self.counts.get("ok", 0)

    @property
    def main(self) -> str:
        return main_metric(self.metrics)

    @property
    def measures(self) -> list[str]:
        return [*self.metrics, LOG_PROB]

    @property
    def own_scores(self) -> list[dict[str, Any]]:
        return list(self.models[0]["scores"].values()) if self.models else []

    @property
    def corpus_metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for model in self.models for metric in model["scores"]))

    @property
    def has_intervals(self) -> bool:
        return any(row["ci_low"] is not None for model in self.models for row in model["scores"].values())

    @property
    def has_references(self) -> bool:
        return any(image["references"] for image in self.images)

    @property
    def has_attention(self) -> bool:
        return any("words" in image for image in self.images)


def scored(segments: DataFrame) -> list[str]:
    """The metrics that some image has a score of."""
    counts = segments.agg(*(F.count(name).alias(name) for name in tables.metrics_of(segments))).collect()[0].asDict()
    return [name for name, count in counts.items() if count]


def main_metric(metrics: Sequence[str]) -> str:
    """What images are ordered by."""
    return next((name for name in (*MAIN, *metrics) if name in metrics), LOG_PROB)


def describe(captions: DataFrame, location: str, keys: Mapping[str, str]) -> Report:
    """Counts, language and failures of `captions`, the rows of one model and decoding."""
    counts = {row["status"]: row["count"] for row in captions.groupBy("status").count().collect()}
    ok = captions.where(F.col("status") == "ok").withColumn("words", _words(F.col("caption")))
    length = F.size("words")
    lengths = ok.groupBy(length.alias("length")).count().orderBy("length").collect()
    spoken = ok.select(F.explode("words").alias("word")).groupBy("word").count()
    repeated = ok.groupBy("caption").count().orderBy(F.desc("count"), "caption")
    language = {
        "n_words": spoken.count(),
        "n_captions": ok.select("caption").distinct().count(),
        "mean_length": ok.agg(F.avg(length)).head()[0],  # type: ignore[index]
    }
    return Report(
        location,
        keys["model_id"],
        keys["decode_id"],
        counts,
        language,
        [(row["length"], row["count"]) for row in lengths],
        [(row["word"], row["count"]) for row in spoken.orderBy(F.desc("count"), "word").head(WORDS)],
        [(row["caption"], row["count"]) for row in repeated.where(F.col("count") > 1).head(REPEATED)],
        failures(captions),
    )


def failures(captions: DataFrame) -> list[dict[str, Any]]:
    """Each status but ok, with its count and some rows, the most frequent first."""
    same = Window.partitionBy("status").orderBy("image_id")
    everyone = Window.partitionBy("status")
    failed = captions.where(F.col("status") != "ok").select("status", "image_id", "error_message")
    ranked = failed.withColumns({"rank": F.row_number().over(same), "count": F.count("*").over(everyone)})
    found: dict[str, dict[str, Any]] = {}
    for row in ranked.where(F.col("rank") <= EXAMPLES).orderBy(F.desc("count"), "status", "rank").collect():
        group = found.setdefault(row["status"], {"status": row["status"], "count": row["count"], "examples": []})
        group["examples"].append(row)
    return list(found.values())


def corpus_scores(corpus: DataFrame, keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """The scores of each model and decoding: those of `keys` first, then the others, the last evaluated first."""
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for row in corpus.orderBy(F.desc("evaluated_at"), "model_id", "decode_id", "metric").collect():
        key = (row["model_id"], row["decode_id"])
        facts = {"n_segments": row["n_segments"], "n_missing": row["n_missing"], "scores": {}}
        models.setdefault(key, {"keys": key, **facts})["scores"][row["metric"]] = row
    own = (keys["model_id"], keys["decode_id"])
    ordered = sorted(models.values(), key=lambda model: model["keys"] != own)[:MODELS]
    if not ordered or ordered[0]["keys"] != own:
        return []
    for model in ordered:
        model["name"] = "this model" if model["keys"] == own else "{}, decoding {}".format(*map(_short, model["keys"]))
    return ordered


def _short(key: str | None) -> str:
    """A hash by its beginning. Other tools' names are told apart by their ends as well."""
    return key[:8] if key and re.fullmatch("[0-9a-f]{16,}", key) else key or "null"


def histogram(segments: DataFrame, metric: str) -> tuple[str, float, list[tuple[float, int]]]:
    """The metric, a bin's width, and each bin's lower end and images; the last takes what lies above it."""
    top = CIDER_TOP if metric == "cider" else 100
    step = top / BINS
    low = F.least(F.floor(F.col(metric) / step), F.lit(BINS - 1)) * step
    counted = segments.where(F.col(metric).isNotNull()).groupBy(low.alias("low")).count().orderBy("low").collect()
    return metric, step, [(float(row["low"]), row["count"]) for row in counted]


def pick(rows: DataFrame, order: str, limit: int) -> list[Row]:
    """At most `limit` rows: where there are more, a quarter are the lowest by the column `order`, a quarter the
    highest, a quarter failures, or more where captions do not fill the rest, and the rest by a hash of image_id, which
    is as good as chance."""
    ok, failed = rows.where(F.col("status") == "ok"), rows.where(F.col("status") != "ok")
    share = max(1, limit // 4)
    bad = failed.orderBy("image_id").head(limit)
    lowest = ok.orderBy(F.asc_nulls_last(order), "image_id").head(share)
    highest = ok.orderBy(F.desc_nulls_last(order), "image_id").head(share)
    picked: dict[str, Row] = {}
    for row in (*lowest, *highest, *ok.orderBy(F.xxhash64("image_id")).head(limit)):
        if min(len(bad), share) + len(picked) < limit:
            picked.setdefault(row["image_id"], row)
    return [*bad[: limit - len(picked)], *picked.values()]


def gallery(rows: Sequence[Row], thumbnails: Mapping[str, Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """What the page's script reads of each image."""
    images = []
    for row in rows:
        scores = [row[name] for name in (*metrics, LOG_PROB)]
        image: dict[str, Any] = {
            "id": row["image_id"],
            "caption": row["caption"],
            "status": row["status"],
            "message": row["error_message"],
            "references": [text for text in row["captions"] or [] if text is not None],
            # A page has no numbers that are none.
            "measures": [round(s, 2) if s is not None and math.isfinite(s) else None for s in scores],
        }
        seen = thumbnails.get(row["image_id"])
        if seen is not None and seen["jpeg"] is not None:
            image |= {"jpeg": _base64(seen["jpeg"]), "width": seen["width"], "height": seen["height"]}
            if seen["words"]:
                image |= {"words": seen["words"], "attention": _base64(seen["attention"])}
        images.append(image)
    return images


def render(report: Report) -> str:
    """The page, complete in itself: styles, script, charts and pictures stand in it. All texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        # Spark gives times as this machine's, without saying so.
        "when": lambda time: f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if time else "–",
        "number": lambda value: "–" if value is None else f"{value:,}",
        "score": lambda value: "–" if value is None else f"{value:,.1f}",
        "share": lambda part, whole: f"{part / whole:.1%}" if whole else "–",
        "metric": metric_name,
    }
    script, style = (_source(environment, name) for name in ("report.js", "report.css"))
    return environment.get_template("report.html").render(
        report=report,
        headline=(report.main, "bleu_4"),
        charts=_charts(report),
        data={"measures": [metric_name(name) for name in report.measures], "images": report.images},
        style=Markup(style),
        script=Markup(script),
        # The page's only script that a browser may run, whatever else got into it.
        script_hash=_base64(hashlib.sha256(script.encode()).digest()),
    )


def metric_name(metric: str) -> str:
    names = {"cider": "CIDEr-D", LOG_PROB: "log p"}
    return names.get(metric) or title(metric)


def _charts(report: Report) -> dict[str, Any]:
    scores = [
        {"metric": metric_name(metric), "model": model["name"], **{n: row[n] for n in ("score", "ci_low", "ci_high")}}
        for metric in report.corpus_metrics
        for model in report.models
        if (row := model["scores"].get(metric)) is not None and row["score"] is not None
    ]
    return {
        "scores": charts.intervals(scores, "Scores of each metric and model") if scores else "",
        "histograms": [
            (metric, charts.histogram(bins, step, metric_name(metric), f"How many images have which {metric}"))
            for metric, step, bins in report.histograms
        ],
        "lengths": charts.histogram(report.lengths, 1, "words", "How many captions have how many words"),
        "words": charts.bars(report.words, "times", "The most frequent words of the captions"),
    }


def _words(caption: Column) -> Column:
    return F.filter(F.split(F.lower(caption), r"\s+"), lambda word: word != "")


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
