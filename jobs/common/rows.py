"""Rows of images and of captions as executors take and give them, in Arrow. Neither Spark nor torch here."""

import pyarrow as pa

# The status of a row that only tells the driver to stop the run: no table ever holds it.
STOPPED = "stopped"

INPUT = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_version", pa.string()),
        ("uri", pa.string()),
        ("content", pa.binary()),
        ("attempts", pa.int32()),
    ]
)

OUTPUT = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_version", pa.string()),
        ("uri", pa.string()),
        ("caption", pa.string()),
        ("log_prob", pa.float64()),
        ("alternatives", pa.list_(pa.struct([("caption", pa.string()), ("log_prob", pa.float64())]))),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("captioned_at", pa.timestamp("us", tz="UTC")),
        ("attempts", pa.int32()),
    ]
)

# What a thumbnail is made of.
CAPTIONED = pa.schema([
    ("image_id", pa.string()),
    ("uri", pa.string()),
    ("content", pa.binary()),
    ("caption", pa.string()),
])  # fmt: skip
