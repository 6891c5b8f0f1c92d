"""Arrow batches as Spark carries them: in other sizes, and packed into the bytes of a row. No Spark in it."""

import functools
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa


@functools.cache
def settle() -> None:
    """Lets garbage collection pass over all that this Python process has loaded. Spark's workers collect after each
    task, which takes as long as a small task itself."""
    gc.freeze()


def regroup(batches: Iterable[pa.RecordBatch], rows: int, n_bytes: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that are no smaller, but for the last, than one of the two says."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(b.num_rows for b in held) >= rows or sum(b.nbytes for b in held) >= n_bytes:
            yield pa.concat_batches(held)
            held = []
    if held:
        yield pa.concat_batches(held)


def pack(batch: pa.RecordBatch) -> bytes:
    """The batch as Arrow's stream of bytes, which Spark need not convert row by row."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def unpack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches that are packed in the only column of others."""
    for batch in batches:
        for packed in batch.column(0):
            yield from pa.ipc.open_stream(packed.as_buffer())


def partly(schema: pa.Schema, columns: Mapping[str, Sequence | pa.Array]) -> pa.RecordBatch:
    """Rows that have these columns of the schema, and null in the others."""
    (size,) = {len(column) for column in columns.values()}
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(size, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def widen(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same rows with the schema's other columns, null."""
    return partly(schema, dict(zip(batch.schema.names, batch.columns, strict=True)))
