"""A folder of good photographs among what else turns up under an image's name. Made by code: nothing is committed."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import ExifTags, Image

SAMPLES = Path(__file__).parents[1] / "samples" / "images"
GOOD = 20
BOMB_SIDE = 30_000


def photographs(count: int) -> list[bytes]:
    """JPEGs of real photographs, every one different: the samples first, then views of them."""
    files = sorted(SAMPLES.glob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"no photographs in {SAMPLES}")
    return [_view(files[number % len(files)].read_bytes(), number // len(files)) for number in range(count)]


def write_hostile_folder(folder: Path, photographs: list[bytes]) -> dict[str, str]:
    """Writes the files, and returns for each name the status that captioning must give it.

    `exif_orientation_6.jpg` shows the photograph of `photo_00.jpg`, stored lying on its side. Every other good file
    shows one of the photographs as well, except `one_pixel.png`.
    """
    first = photographs[0]
    files = {f"photo_{number:02}.jpg": ("ok", photographs[number % len(photographs)]) for number in range(GOOD)}
    files |= {
        "text.jpg": ("decode_error", b"This is not a photograph.\n" * 20),
        "page.jpeg": ("decode_error", b"<!DOCTYPE html><html><title>404 Not Found</title></html>"),
        "drawing.png": ("decode_error", b'<svg viewBox="0 0 9 9"><circle r="9"/></svg>'),
        "empty.jpg": ("decode_error", b""),
        "truncated.jpg": ("decode_error", first[: len(first) // 2]),
        "header_only.jpg": ("decode_error", first[:2]),
        "lying_size.jpg": ("too_large", lying_jpeg(first)),
        "bomb.png": ("too_large", bomb_png()),
        "cmyk.jpg": ("ok", encode(opened(first).convert("CMYK"), "JPEG", quality=90)),
        "grey.jpg": ("ok", encode(opened(first).convert("L"), "JPEG", quality=90)),
        "grey_16_bit.png": ("ok", grey_16_bit_png(first)),
        "rgb_16_bit.png": ("ok", rgb_16_bit_png(first)),
        "palette_alpha.png": ("ok", palette_alpha_png(first)),
        "grey_alpha.png": ("ok", encode(with_round_alpha(first).convert("LA"), "PNG")),
        "one_pixel.png": ("ok", encode(Image.new("RGB", (1, 1), "red"), "PNG")),
        "animation.gif": ("ok", animated_gif(photographs)),
        "truncated_animation.gif": ("ok", truncated_gif(photographs)),
        "photo.webp": ("ok", encode(opened(first), "WEBP", quality=80)),
        "photo.avif": ("ok", encode(opened(first), "AVIF", quality=60)),
        "truncated.avif": ("decode_error", encode(opened(first), "AVIF", quality=60)[:-200]),
        "photo.heic": ("ok", encode(opened(first), "HEIF", quality=60)),
        "truncated.heic": ("decode_error", encode(opened(first), "HEIF", quality=60)[:-200]),
        "exif_orientation_6.jpg": ("ok", lying_on_its_side(first)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, content) in files.items():
        (folder / name).write_bytes(content)
    return {name: status for name, (status, _) in files.items()}


def opened(content: bytes) -> Image.Image:
    """The photograph as RGB pixels."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The image as a file's bytes."""
    file = io.BytesIO()
    if form == "HEIF":  # not by Pillow, which would then read it by this package too
        pillow_heif.from_pillow(image).save(file, **options)
    else:
        image.save(file, form, **options)
    return file.getvalue()


def lying_on_its_side(photograph: bytes) -> bytes:
    """A JPEG whose pixels are turned a quarter, and whose EXIF says how to turn them back (orientation 6)."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = opened(photograph).transpose(Image.Transpose.ROTATE_90)
    return encode(turned, "JPEG", quality=95, subsampling=0, exif=exif)


def lying_jpeg(photograph: bytes) -> bytes:
    """A JPEG whose header claims 65,500 x 65,500 pixels, four gigapixels that are not there."""
    position = _frame_header(photograph)
    # The segment holds: length (2 bytes), precision (1), height (2), width (2).
    return photograph[: position + 3] + struct.pack(">HH", 65_500, 65_500) + photograph[position + 7 :]


def bomb_png(side: int = BOMB_SIDE) -> bytes:
    """A valid black RGB PNG of `side` x `side`: under 3 MB that decode to 2.7 GB. It is made in a second, in 10 MB.

    A deflate stream may be flushed so that what follows refers to nothing before: one such piece, of 100 rows, is
    repeated. The checksum of zeros alone follows from their number.
    """
    rows = 100
    assert side % rows == 0
    piece_bytes = rows * (1 + 3 * side)  # a filter byte begins each row
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = deflate.compress(bytes(piece_bytes)) + deflate.flush(zlib.Z_FULL_FLUSH)
    end = deflate.flush(zlib.Z_FINISH)
    adler = (piece_bytes * (side // rows) % 65_521) << 16 | 1
    data = b"\x78\xda" + piece * (side // rows) + end + struct.pack(">I", adler)
    return png(side, side, depth=8, colour=2, data=data)


def grey_16_bit_png(photograph: bytes) -> bytes:
    """The photograph as greyscale of 16 bits a sample, using the full range."""
    grey = np.asarray(opened(photograph).convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(grey), "PNG")


def rgb_16_bit_png(photograph: bytes) -> bytes:
    """The photograph as RGB of 16 bits a sample, which Pillow reads but does not write."""
    image = opened(photograph)
    samples = (np.asarray(image).astype(np.uint16) * 257).astype(">u2")
    lines = samples.reshape(image.height, -1).view(np.uint8)
    data = np.hstack([np.zeros((image.height, 1), np.uint8), lines]).tobytes()
    return png(image.width, image.height, depth=16, colour=2, data=zlib.compress(data, 1))


def palette_alpha_png(photograph: bytes) -> bytes:
    """The photograph in 256 colours, of which each has its own transparency."""
    palette = opened(photograph).quantize(256)
    return encode(palette, "PNG", transparency=bytes(255 - number // 4 for number in range(256)))


def with_round_alpha(photograph: bytes) -> Image.Image:
    """The photograph as RGBA, fading towards its corners."""
    image = opened(photograph).convert("RGBA")
    image.putalpha(Image.radial_gradient("L").point(lambda value: 255 - value).resize(image.size))
    return image


def animated_gif(photographs: list[bytes]) -> bytes:
    """Three photographs, one after another."""
    frames = [opened(photographs[number % len(photographs)]).resize((320, 240)) for number in range(3)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)


def truncated_gif(photographs: list[bytes]) -> bytes:
    """An animation that breaks off in its second frame: the first, which is captioned, is whole."""
    whole = animated_gif(photographs)
    alone = len(encode(opened(photographs[0]).resize((320, 240)), "GIF"))
    assert alone + 2_000 < len(whole)
    return whole[: alone + 2_000]


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG file around compressed scan lines."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def _view(photograph: bytes, round_: int) -> bytes:
    """The photograph itself in round 0; later, a closer and coarser view of it."""
    if round_ == 0:
        return photograph
    image = opened(photograph)
    margin = 0.04 * round_ / (1 + 0.1 * round_)
    box = (image.width * margin, image.height * margin, image.width * (1 - margin), image.height * (1 - margin))
    return encode(image.crop(tuple(round(edge) for edge in box)), "JPEG", quality=max(60, 90 - 5 * round_))


def _segments(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each segment of a JPEG up to the pixel data."""
    position = 2
    while position < len(jpeg) - 4:
        marker, length = jpeg[position + 1], struct.unpack_from(">H", jpeg, position + 2)[0]
        yield marker, position + 2
        if marker == 0xDA:
            return
        position += 2 + length


def _frame_header(jpeg: bytes) -> int:
    """Where the segment with the image's size begins, at its length."""
    for marker, position in _segments(jpeg):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return position
    raise ValueError("a JPEG without a frame header")
