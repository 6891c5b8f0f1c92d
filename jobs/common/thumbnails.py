"""What a report's gallery shows of an image, made on executors: a small JPEG and, for a caption of a model that looks,
where it looked at each word. No Spark here, so that it can be run and tested in any Python."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from jobs.common.executor import fetch
from jobs.common.rows import CAPTIONED
from jobs.common.storage import Access, SystemicError
from nic_model.captioner import Failure
from nic_model.checkpoint import CaptionModel
from nic_model.images import ImageError, open_rgb, resize
from nic_model.metrics.tokenizer import tokenize
from nic_model.show_attend_tell import ShowAttendTell
from nic_model.show_tell import Captions

QUALITY = 70  # of the JPEG: at this size more is not seen

OUTPUT = pa.schema([
    ("image_id", pa.string()),
    ("jpeg", pa.binary()),  # null where there is no image to show
    ("width", pa.int32()),  # of the JPEG
    ("height", pa.int32()),
    ("words", pa.list_(pa.string())),  # of the caption; null without attention
    ("attention", pa.binary()),  # a byte for each word and cell, 255 for the cell looked at most at that word
    ("problem", pa.string()),  # what ends the report, of no image; else null
])  # fmt: skip


def thumbnail_batches(
    batches: Iterable[pa.RecordBatch], size: int, access: Access, model: CaptionModel | None = None
) -> Iterator[pa.RecordBatch]:
    """For each record batch of CAPTIONED one of OUTPUT, row for row; the JPEGs' longer side is at most `size` pixels.

    An image without content is fetched from its uri as `access` allows; what would be so with every image is the
    `problem` of one row, the last: raised here, it would be tried and told four times by Spark. With `model`, whose
    decoder is show_attend_tell, captions come with their attention.
    """
    try:
        for batch in batches:
            yield pa.RecordBatch.from_pylist([_thumbnail(row, size, access, model) for row in _rows(batch)], OUTPUT)
    except SystemicError as error:
        yield pa.RecordBatch.from_pylist([{"problem": str(error)}], OUTPUT)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Row by row, so that a batch of large images is not copied as a whole."""
    for index in range(batch.num_rows):
        yield {name: batch.column(name)[index].as_py() for name in CAPTIONED.names}


def _thumbnail(row: dict[str, Any], size: int, access: Access, model: CaptionModel | None) -> dict[str, object]:
    image_id, uri, content, caption = (row[name] for name in CAPTIONED.names)
    fetched, _ = fetch(image_id, content, uri, access)
    found: dict[str, object] = {"image_id": image_id}
    if isinstance(fetched, Failure):
        return found
    try:
        image, _, _ = open_rgb(fetched, max(size, model.config.image_size if model else 0))
    except ImageError:
        return found
    if model is not None and caption:
        seen = look(model, resize(image, model.config.image_size), str(caption))
        found |= {"words": tokenize(str(caption)), "attention": seen.tobytes()}
    image.thumbnail((size, size))
    written = io.BytesIO()
    image.save(written, "JPEG", quality=QUALITY, optimize=True)
    return found | {"jpeg": written.getvalue(), "width": image.width, "height": image.height}


@torch.inference_mode()
def look(model: CaptionModel, rgb: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """Where `model` looks in the image `rgb`, uint8 (3, S, S), as it tells `caption`: uint8 (T, P), a row for each of
    its tokens, of which the largest is 255."""
    assert isinstance(model.decoder, ShowAttendTell)
    tokens = torch.tensor([model.vocabulary.encode(caption)])
    told = Captions(tokens, torch.tensor([tokens.shape[1]]), torch.zeros(1, dtype=torch.int64))
    [attention] = model.decoder.attention_of(model.encoder(torch.from_numpy(rgb).unsqueeze(0)), told)
    attention = attention[:-1]  # that of the end tells nothing
    scaled: NDArray[np.uint8] = (255 * attention / attention.amax(1, keepdim=True)).round().byte().numpy()
    return scaled
