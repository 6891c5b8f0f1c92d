"""Which images are to be captioned, and the waves that a run is cut into. Each wave is committed by itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.common import tables
from jobs.common.sources import Images, spread, task_count
from jobs.common.targets import Target

# Some minutes of captioning for a core without a GPU.
IMAGES_PER_CORE = 10_000
BROADCAST = 1_000_000  # ids that the driver and each executor can hold
COMMITS = 200  # that a wave replaces rows of
PROBED = 8  # objects tried before the first wave
KNOWN = "INTERVAL 12 HOURS"  # what failed so long ago failed on another night, and not on the try before this one
NAMED = ("id", "no_id")  # what the image is joined by

Units = Iterable[tuple[str | None, str | None, int]]


@dataclass(frozen=True)
class Wave:
    """A part of what is to be captioned: of the rows that replace those of some commits, or none, those of some
    `units`, which are files of the source's content or of the list itself."""

    replaces: tuple[str, ...]
    units: tuple[str | None, ...]
    size: int


@dataclass(frozen=True)
class Plan:
    """What is to be captioned, as a list on disk, and how it is cut."""

    images: Images
    todo: DataFrame
    waves: list[Wave]
    # Rows of the source whose image_id stands in another row as well, which is the one captioned, by commit and unit.
    spare: dict[tuple[str | None, str | None], int]

    @property
    def duplicates(self) -> int:
        return sum(self.spare.values())

    def known(self) -> DataFrame:
        """The image_ids of those that failed on another night."""
        return self.todo.where("known").select("image_id")

    def some_objects(self) -> list[str]:
        """The uris of some new images that are on S3."""
        if self.images.has_content or not self.waves:
            return []
        new = self.todo.where(F.col("replaces").isNull() & F.col("uri").startswith("s3"))
        return [row["uri"] for row in new.select("uri").head(PROBED)]

    def read(self, wave: Wave) -> DataFrame:
        """The wave's images, as TO_CAPTION. Of a source with content, the files of the wave alone are read."""
        replaces = F.col("replaces").isin(*wave.replaces) if wave.replaces else F.col("replaces").isNull()
        todo = _of_units(self.todo.where(replaces), wave)
        if not self.images.has_content:
            # Ids and uris are quickly moved.
            rows = todo.withColumn("content", F.lit(None).cast("binary"))
            return rows.repartition(task_count(todo.sparkSession, wave.size)).select(tables.TO_CAPTION.names)
        wanted = todo.select(F.col("image_id").alias("id"), F.col("image_version").alias("version"), "attempts")
        if wave.size <= BROADCAST:
            wanted = F.broadcast(wanted)  # or Spark, which does not know how few they are, would move the images
        same = F.col("image_id").eqNullSafe(F.col("id")) & F.col("image_version").eqNullSafe(F.col("version"))
        rows = _of_units(self.images.rows, wave)
        rows = spread(rows.join(wanted, same, how="inner"), rows, wave.size)
        if any(self.spare.get((commit, unit)) for commit in wave.replaces or (None,) for unit in wave.units):
            rows = rows.dropDuplicates(["image_id"])  # which moves all of the wave's content
        return rows.select(tables.TO_CAPTION.names)


def plan(images: Images, target: Target, existing: DataFrame | None, keys: Mapping[str, str], limits: "Limits") -> Plan:
    """Lists what has no row yet under `keys`, what has one of another version, and what failed; and cuts it."""
    spark = target.spark
    todo = find_todo(images, existing, keys, limits.max_attempts)
    if limits.images:
        todo = todo.limit(limits.images)
    todo = target.stage(todo, "todo", maxRecordsPerFile=limits.wave or _default_wave(spark))
    if not images.has_content:
        todo = todo.withColumn("unit", F.col("_metadata.file_path"))
    counted = todo.groupBy("replaces", "unit").agg(F.count("*").alias("n"), F.sum(F.col("copies") - 1).alias("spare"))
    rows = counted.collect()
    # Only now: before it has run anything, a cluster may not have told how many cores it has.
    size = BROADCAST if images.whole else _default_wave(spark)
    size = limits.wave or (min(size, BROADCAST) if images.has_content else size)
    waves = cut([(row["replaces"], row["unit"], row["n"]) for row in rows], size)
    return Plan(images, todo, waves, {(row["replaces"], row["unit"]): row["spare"] for row in rows})


def _default_wave(spark: SparkSession) -> int:
    return IMAGES_PER_CORE * spark.sparkContext.defaultParallelism


@dataclass(frozen=True)
class Limits:
    """Of images in a run (0: none) and in a wave (0: by the cores; or, where each wave reads the whole source, as many
    as can be), and of attempts at one."""

    images: int
    wave: int
    max_attempts: int


def find_todo(images: Images, existing: DataFrame | None, keys: Mapping[str, str], max_attempts: int) -> DataFrame:
    """A row for each image to caption: which attempt it is, whether it is `known` to fail, the commit that it
    `replaces` a row of, and how many rows of the source name it. One join."""
    rows = _named(images.rows.select("image_id", "image_version", "uri", "unit"))
    if images.unique:
        rows = rows.withColumn("copies", F.lit(1).cast("long"))
    else:
        # The same one of several each time, or an image of two versions would change every night. Grouped by what is
        # joined on, so that rows are shuffled once.
        one = F.max(F.struct("image_version", "uri", "unit")).alias("one")
        image_id = F.when(~F.col("no_id"), F.col("id")).alias("image_id")
        rows = rows.groupBy(*NAMED).agg(one, F.count("*").alias("copies"))
        rows = rows.select(*NAMED, image_id, "one.*", "copies")
    if existing is None:
        fresh = {"attempts": F.lit(1), "known": F.lit(False), "replaces": F.lit(None).cast("string")}
        todo = rows.withColumns(fresh)
    else:
        done = _named(existing.where(tables.having(keys))).select(
            *NAMED, F.col("image_version").alias("version"), "status", "commit",
            F.coalesce("attempts", F.lit(1)).alias("tried"), "captioned_at",
        )  # fmt: skip
        changed = ~F.col("image_version").eqNullSafe(F.col("version"))
        again = (F.col("status") != "ok") & (F.col("tried") < max_attempts)
        todo = (
            rows.join(done, list(NAMED), how="left")
            .where(F.col("commit").isNull() | changed | again)
            .withColumn("attempts", F.when(F.col("commit").isNull() | changed, 1).otherwise(F.col("tried") + 1))
            .withColumn("known", again & ~changed & (F.col("captioned_at") < F.expr(f"current_timestamp() - {KNOWN}")))
            .withColumnRenamed("commit", "replaces")
            .dropDuplicates(list(NAMED))  # of an image that stands there twice: one row a run is mended
        )
    return todo.select("image_id", "image_version", "uri", "unit", "copies", "attempts", "known", "replaces")


def _named(rows: DataFrame) -> DataFrame:
    """With NAMED, in which a null image_id equals another: Spark would make these columns to join on, but shuffle by
    them anew what is grouped by image_id already."""
    return rows.withColumns({"id": F.coalesce("image_id", F.lit("")), "no_id": F.col("image_id").isNull()})


def cut(units: Units, size: int) -> list[Wave]:
    """Waves of up to `size` images, or of one unit where that has more. New images come first. Rows that replace those
    of one commit are in one wave, where it holds them, so that each commit is replaced once; or else in waves of their
    own, since a wave is what its commits and its units have in common."""
    waves: list[Wave] = []
    joinable = False  # whether the last wave is of whole commits
    for commit, group in groupby(sorted(units, key=lambda u: (u[0] or "", u[1] or "")), key=lambda u: u[0]):
        parts = _cut_commit(list(group), size)
        whole = commit is not None and len(parts) == 1
        if joinable and whole and len(waves[-1].replaces) < COMMITS and waves[-1].size + parts[0].size <= size:
            last, part = waves.pop(), parts[0]
            units_of_both = tuple(dict.fromkeys((*last.units, *part.units)))
            parts = [Wave((*last.replaces, *part.replaces), units_of_both, last.size + part.size)]
        waves += parts
        joinable = whole
    return waves


def _cut_commit(units: list[tuple[str | None, str | None, int]], size: int) -> list[Wave]:
    """Those that replace rows of one commit, or none."""
    parts: list[list[tuple[str | None, int]]] = []
    held = 0
    for _, unit, n in units:
        if not parts or held + n > size:
            parts.append([])
            held = 0
        parts[-1].append((unit, n))
        held += n
    commit = units[0][0]
    replaces = () if commit is None else (commit,)
    return [Wave(replaces, tuple(unit for unit, _ in part), sum(n for _, n in part)) for part in parts]


def _of_units(rows: DataFrame, wave: Wave) -> DataFrame:
    named = [unit for unit in wave.units if unit is not None]
    of = F.col("unit").isin(named)
    return rows.where(of | F.col("unit").isNull() if len(named) < len(wave.units) else of)
