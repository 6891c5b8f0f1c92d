"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import standalone_cluster
from tests.e2e.seaweed import BUCKETS, Seaweed, seaweed


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a standalone cluster of two workers, one core and 2 GiB each, that the session's tests share."""
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as url:
        yield url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An S3 server with the buckets BUCKETS, which are empty."""
    with seaweed(tmp_path_factory.mktemp("s3")) as server:
        for bucket in BUCKETS:
            server.admin().create_bucket(Bucket=bucket)
        yield server
