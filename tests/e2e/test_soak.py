"""The short form of `soak.py`: one table."""

from pathlib import Path

from pyspark.sql import SparkSession

from tests.e2e.cluster import Cluster
from tests.e2e.seaweed import Seaweed
from tests.e2e.soak import find_place, put_images, soak, undisturbed


def test_no_row_is_lost_and_none_twice(spark: SparkSession, cluster: Cluster, s3: Seaweed, tmp_path: Path) -> None:
    place = find_place(spark, cluster, s3, tmp_path, "parquet")
    _, manifest = put_images(s3, tmp_path, count=60)
    undisturbed(place, manifest, "undisturbed")
    outcome = soak(place, 1, manifest, "undisturbed", kinds=("python worker", "driver", "s3 server"))
    assert outcome.is_good, outcome
    assert outcome.kills["driver"]
    assert outcome.waves > 2
    assert outcome.polls > 2
