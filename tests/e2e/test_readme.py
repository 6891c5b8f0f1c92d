"""The README's command for a table in an Iceberg REST catalog on S3. readme.py runs the others too, and bulk.py the
same of thousands of objects."""

from pathlib import Path

from tests.e2e import readme
from tests.e2e.seaweed import Seaweed


def test_the_command_with_most_parts(s3: Seaweed, tmp_path: Path) -> None:
    assert len(readme.COMMANDS) == len(readme.KINDS)
    readme.prepare(s3)
    readme.run("type=rest", s3, tmp_path)
