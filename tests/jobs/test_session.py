"""What ends a run with one line."""

import pytest

from jobs.common.session import exit_status, systemic
from jobs.common.storage import SystemicError

FROM_A_TASK = """An error occurred while calling o99.parquet.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 1 in stage 4.0 failed 4 times, most recent \
failure: Lost task 1.3 in stage 4.0 (TID 20) (10.0.0.7 executor 1): java.io.IOException: No space left on device
\tat java.base/java.io.FileOutputStream.writeBytes(Native Method)
"""
FROM_A_WORKER = """Job aborted due to stage failure: Task 0 in stage 3.0 failed 4 times:
org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "storage.py", line 1, in ask
jobs.common.storage.SystemicError: s3://photos: SlowDown: slower (40 tries in 121 s)
\tat org.apache.spark.api.python
"""
FROM_A_STORE = """An error occurred while calling o7.sql.
: java.nio.file.AccessDeniedException: s3a://tables/captions: getFileStatus on captions: Access Denied (403)
\tat org.apache.hadoop.fs.s3a.S3AUtils.translateException(S3AUtils.java:271)
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SystemicError("s3://photos: NoSuchBucket"), "s3://photos: NoSuchBucket"),
        (RuntimeError(FROM_A_WORKER), "s3://photos: SlowDown: slower (40 tries in 121 s)"),
        (RuntimeError("torch.OutOfMemoryError: \nmore"), "out of memory"),
        (RuntimeError(FROM_A_TASK), "No space left on device"),
        (RuntimeError(FROM_A_STORE), "s3a://tables/captions: getFileStatus on captions: Access Denied (403)"),
        (
            OSError(28, "No space left on device", "/out/.staging"),
            "[Errno 28] No space left on device: '/out/.staging'",
        ),
        (PermissionError(13, "Permission denied", "/out"), "[Errno 13] Permission denied: '/out'"),
        (RuntimeError("[FAILED_READ_FILE.FILE_NOT_EXIST] x"), "a table was replaced while it was read: run it again"),
        (
            RuntimeError(
                'Py4J\n: org.apache.hadoop.fs.UnsupportedFileSystemException: No FileSystem for scheme "odd"\n'
            ),
            'No FileSystem for scheme "odd"',
        ),
        (ZeroDivisionError("division by zero"), None),
    ],
)
def test_systemic(error: BaseException, line: str | None) -> None:
    assert systemic(error) == line


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("--size 0: must be at least 1"), 2, "--size 0: must be at least 1"),
        (SystemicError("s3://photos: NoSuchBucket"), 1, "s3://photos: NoSuchBucket"),
    ],
)
def test_a_job_ends_with_one_line(error: Exception, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise error

    assert exit_status(main) == status
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 // 0)
