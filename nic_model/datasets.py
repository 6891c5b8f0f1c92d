"""Captioned images, from the files in which they are usually handed around.

Parquet, the token files of Flickr8k and Flickr30k (and their CSV form), Karpathy's JSON and COCO's: each
reader returns the same list of `Example`, in the order of its file. A file that cannot be used raises a
ValueError that says in one line which file, what is wrong and what is allowed. Single images that cannot be
used (no file, no caption) are left out, with one warning that counts them.
"""

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

log = logging.getLogger(__name__)

LISTING_SUFFIXES = (".json", ".txt", ".token", ".csv")  # files that name images instead of holding them
PARQUET_COLUMNS = ("image_id", "content", "captions")
CSV_HEADER = "image,caption"

_STRINGS = (pa.string(), pa.large_string(), pa.string_view())
_BINARIES = (pa.binary(), pa.large_binary(), pa.binary_view())


@dataclass(frozen=True)
class Example:
    """An image and what people said of it."""

    image_id: str
    image: bytes | Path  # encoded bytes, or the file to read them from
    captions: tuple[str, ...]

    def read(self) -> bytes:
        """Return the encoded image. Raises OSError if its file cannot be read."""
        return self.image if isinstance(self.image, bytes) else self.image.read_bytes()


def read_dataset(specs: Sequence[str], split: str | None = None, images: Path | None = None) -> list[Example]:
    """Read data sets of any known form, told apart by name and content, one after the other.

    `split` is a file that lists image names where a spec is a token file, and a name such as `train` where it
    is Karpathy's JSON. `images` is the folder of the image files; Parquet needs none.

    Raises ValueError if a spec cannot be read, or lacks the image folder or the split it needs.
    """
    examples: list[Example] = []
    for spec in specs:
        if Path(spec).suffix.lower() in LISTING_SUFFIXES:
            examples += _read_listing(Path(spec), split, images)
        elif split is not None:
            raise ValueError(f"{spec}: Parquet has no splits, so {split!r} cannot be chosen: name the files")
        else:
            examples += read_parquet([spec])
    return examples


def read_parquet(patterns: Sequence[str]) -> list[Example]:
    """Read Parquet files, folders of them or globs, with the columns image_id, content and captions.

    The images stay in memory, encoded.

    Raises ValueError if a pattern matches no file, or a file is not Parquet or lacks a column.
    """
    files: list[Path] = []
    for pattern in patterns:
        found = _parquet_files(pattern)
        if not found:
            raise ValueError(f"{pattern}: no Parquet file matches (a file, a folder or a glob)")
        files += found
    return _examples(", ".join(patterns), (row for file in files for row in _parquet_rows(file)))


def read_flickr(tokens: Path, images: Path, split: Path | None = None) -> list[Example]:
    """Read a token file (`name.jpg#0<TAB>caption`) or a CSV file (`image,caption`), and name its images.

    `split` is a file with one image name per line, with or without `.jpg`; None takes every image.

    Raises ValueError if a line has another form, or the split lists no image of the token file.
    """
    captions: dict[str, list[str]] = {}
    for name, caption in _token_lines(tokens):
        captions.setdefault(name, []).append(caption)
    if split is not None:
        wanted = {line.strip() for line in _read_text(split).split("\n")}
        captions = {
            name: said for name, said in captions.items() if name in wanted or name.removesuffix(".jpg") in wanted
        }
        if not captions:
            raise ValueError(f"{split}: lists no image of {tokens}: one image name per line is expected")
    return _examples(tokens, [(name, images / name, said) for name, said in captions.items()], images)


def read_karpathy(json_path: Path, images: Path, split: str | None = None) -> list[Example]:
    """Read Karpathy's dataset_{flickr8k,flickr30k,coco}.json. The split `train` includes `restval`.

    Raises ValueError if the file has another form or no image of that split.
    """
    return _karpathy(json_path, _read_json(json_path), images, split)


def read_coco(json_path: Path, images: Path) -> list[Example]:
    """Read a COCO captions file, such as captions_val2014.json.

    Raises ValueError if the file has another form or captions an image that it does not list.
    """
    return _coco(json_path, _read_json(json_path), images)


def _read_listing(path: Path, split: str | None, images: Path | None) -> list[Example]:
    if images is None:
        raise ValueError(f"{path}: names image files, so the folder of the images must be given")
    if path.suffix.lower() != ".json":
        if split is not None and not Path(split).is_file():
            raise ValueError(f"{split}: no such file; the split of {path} is a file that lists image names")
        return read_flickr(path, images, None if split is None else Path(split))
    data = _read_json(path)
    if "annotations" not in data:
        return _karpathy(path, data, images, split)
    if split is not None:
        raise ValueError(f"{path}: COCO has one file per split, so {split!r} cannot be chosen: name the file")
    return _coco(path, data, images)


# A row is what every form comes down to: an image's name, its bytes or file (None: there is none), and what
# people said of it, uncleaned.
Row = tuple[str, bytes | Path | None, Iterable[str | None]]


def _examples(source: Path | str, rows: Iterable[Row], folder: Path | None = None) -> list[Example]:
    """Keep the rows that have an image and a caption, and say how many have not."""
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; the image files that {source} names must be there")
    examples: list[Example] = []
    imageless: list[str] = []
    captionless: list[str] = []
    for image_id, image, captions in rows:
        said = tuple(text for caption in captions if caption and (text := caption.strip()))
        if not image or (isinstance(image, Path) and not image.is_file()):
            imageless.append(image_id)
        elif not said:
            captionless.append(image_id)
        else:
            examples.append(Example(image_id, image, said))
    total = len(examples) + len(imageless) + len(captionless)
    for left_out, lack in ((imageless, "image"), (captionless, "caption")):
        if left_out:
            first = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            log.warning("%s: left out %d of %d without %s: %s", source, len(left_out), total, lack, first)
    if not examples:
        counts = f"{len(imageless)} of {total} without image, {len(captionless)} without caption"
        raise ValueError(f"{source}: no image with a caption ({counts})" + (f" in {folder}" if folder else ""))
    return examples


def _parquet_files(pattern: str) -> list[Path]:
    """Return the files that a path or glob means, sorted; in a folder, those that Spark would read."""
    path = Path(pattern)
    if path.exists():
        matches = [path]
    else:
        # Path.glob takes no absolute pattern: start it from the last folder without a wildcard.
        parts = path.parts
        fixed = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), None)
        matches = [] if fixed is None else sorted(Path(*parts[:fixed]).glob(str(Path(*parts[fixed:]))))
    files: list[Path] = []
    for match in matches:
        inside = sorted(match.rglob("*.parquet")) if match.is_dir() else [match]
        files += [f for f in inside if not any(p.startswith(("_", ".")) for p in f.relative_to(match).parts)]
    return files


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(file) as parquet:
            _check_schema(file, parquet.schema_arrow)
            for batch in parquet.iter_batches(batch_size=256, columns=list(PARQUET_COLUMNS)):
                for row in batch.to_pylist():
                    if row["image_id"] is None:
                        raise ValueError(f"{file}: image_id is null in a row, but every image needs one")
                    yield row["image_id"], row["content"], row["captions"] or ()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: cannot be read as Parquet: {reason}") from error


def _check_schema(file: Path, schema: pa.Schema) -> None:
    missing = [column for column in PARQUET_COLUMNS if column not in schema.names]
    if missing:
        raise ValueError(f"{file}: lacks column {', '.join(missing)}; it has {', '.join(schema.names)}")
    image_id, content, captions = (schema.field(column).type for column in PARQUET_COLUMNS)
    is_list = pa.types.is_list(captions) or pa.types.is_large_list(captions)
    for column, found, fits, allowed in (
        ("image_id", image_id, image_id in _STRINGS, "string"),
        ("content", content, content in _BINARIES, "binary"),
        ("captions", captions, is_list and captions.value_type in _STRINGS, "list of string"),
    ):
        if not fits:
            raise ValueError(f"{file}: column {column} is {found}, but must be {allowed}")


def _token_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (image name, caption), whichever of the two forms the file has."""
    text = _read_text(path)
    header, _, rest = text.partition("\n")
    if header.strip().lower() == CSV_HEADER:
        yield from _csv_lines(path, rest)
        return
    # Not splitlines(): it also splits at characters that may stand inside a caption.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        name, _, index = key.strip().rpartition("#")
        if not (tab and name and index.isdecimal()):
            raise ValueError(
                f"{path}: line {number} is {line.strip()[:60]!r}: expected NAME#NUMBER<TAB>CAPTION on every "
                f"line, or a first line {CSV_HEADER!r}"
            )
        yield name, caption


def _csv_lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Yield (image name, caption) from the text below the header."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for name, *caption in filter(None, reader):
            if not caption and not name.strip():
                continue
            if not caption or not name.strip():
                raise ValueError(f"{path}: line {reader.line_num + 1}: expected IMAGE,CAPTION")
            # A caption whose commas are not quoted falls apart: it is the last column, so put it together.
            yield name.strip(), ",".join(caption)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num + 1}: not CSV: {error}") from error


def _karpathy(path: Path, data: dict[str, Any], images: Path, split: str | None) -> list[Example]:
    rows: list[Row] = []
    splits: dict[str, None] = {}
    for number, image in enumerate(_field(path, "the file", data, "images", list)):
        where = f"images[{number}]"
        found = _field(path, where, image, "split", str)
        splits[found] = None
        if split in (None, found) or (split == "train" and found == "restval"):
            name = _field(path, where, image, "filename", str)
            folder = _field(path, where, {"filepath": "", **image}, "filepath", str)
            image_id = (Path(folder) / name).as_posix()
            sentences = _field(path, where, image, "sentences", list)
            said = [_field(path, f"{where}.sentences", sentence, "raw", str) for sentence in sentences]
            rows.append((image_id, images / image_id, said))
    if splits and not rows:
        raise ValueError(f"{path}: has no split {split!r}; its splits are {', '.join(splits)}")
    return _examples(path, rows, images)


def _coco(path: Path, data: dict[str, Any], images: Path) -> list[Example]:
    names: dict[int, str] = {}
    for number, image in enumerate(_field(path, "the file", data, "images", list)):
        where = f"images[{number}]"
        names[_field(path, where, image, "id", int)] = _field(path, where, image, "file_name", str)
    captions: dict[int, list[str]] = {image: [] for image in names}
    for number, annotation in enumerate(_field(path, "the file", data, "annotations", list)):
        where = f"annotations[{number}]"
        image = _field(path, where, annotation, "image_id", int)
        if image not in captions:
            raise ValueError(f"{path}: {where} is about image {image}, which images[] does not list")
        captions[image].append(_field(path, where, annotation, "caption", str))
    return _examples(path, [(name, images / name, captions[n]) for n, name in names.items()], images)


def _field(path: Path, where: str, holder: object, key: str, kind: type) -> Any:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: {where} must have {key!r} of type {kind.__name__}, as in COCO or Karpathy")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(data, dict) or "images" not in data:
        raise ValueError(f"{path}: is neither Karpathy's JSON (images) nor COCO's (images, annotations)")
    return data


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ValueError(f"{path}: line {line} is not UTF-8 (byte 0x{byte:02x})") from error
