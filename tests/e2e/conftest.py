"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster, standalone_cluster
from tests.e2e.seaweed import BUCKETS, Seaweed, seaweed


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A standalone cluster of two workers, one core and 2 GiB each, that the session's tests share."""
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="session")
def cluster_url(cluster: Cluster) -> str:
    return cluster.url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An S3 server with the buckets BUCKETS, which are empty."""
    with seaweed(tmp_path_factory.mktemp("s3")) as server:
        for bucket in BUCKETS:
            server.admin().create_bucket(Bucket=bucket)
        yield server
