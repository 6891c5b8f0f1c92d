"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import standalone_cluster


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a standalone cluster of two workers, one core and 2 GiB each, that the session's tests share."""
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as url:
        yield url
