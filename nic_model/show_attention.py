"""Draws a photograph once for each word of its caption, lit where the model looked when it said the word.

python -m nic_model.show_attention samples/images/dog.jpg --model models/attention --out attention.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nic_model.captioner import Captioner, WordAttention
from nic_model.config import DecodeConfig, add_options, given_options
from nic_model.images import ImageError, open_rgb

TILE, LINE, COLUMNS = 224, 28, 5  # pixels, pixels, pictures in a row
DIMMEST = 0.25  # of its light is left to what was not looked at


def draw(image: Image.Image, words: Sequence[WordAttention]) -> Image.Image:
    """The picture itself and then one for each word, its attention (rows, columns) over it."""
    tiles = [("", image.resize((TILE, TILE)))]
    tiles += [(word.word, lit(image, word.weights)) for word in words]
    rows = -(-len(tiles) // COLUMNS)
    page = Image.new("RGB", (min(len(tiles), COLUMNS) * TILE, rows * (TILE + LINE)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for at, (word, tile) in enumerate(tiles):
        left, top = at % COLUMNS * TILE, at // COLUMNS * (TILE + LINE)
        page.paste(tile, (left, top + LINE))
        pen.text((left + 6, top + 3), word, fill="black", font=font)
    return page


def lit(image: Image.Image, weights: NDArray[np.float32]) -> Image.Image:
    """The picture, TILE pixels square, as bright as `weights` (rows, columns) relative to the largest of them."""
    share = Image.fromarray(weights / weights.max()).resize((TILE, TILE), Image.Resampling.BICUBIC)
    light = DIMMEST + (1 - DIMMEST) * np.asarray(share).clip(0, 1)[:, :, None]
    return Image.fromarray((np.asarray(image.resize((TILE, TILE))) * light).astype(np.uint8))


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nic_model.show_attention", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("image", type=Path, help="the photograph")
    parser.add_argument("--model", type=Path, required=True, help="model directory, of a show_attend_tell model")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write, .png or .jpg")
    add_options(parser, DecodeConfig, default="the model's")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_args(arguments)
    try:
        captioner = Captioner.load(options.model, device="cpu")
        captioner.decode_config = captioner.decode_config.replace(**given_options(options, DecodeConfig))
        content = options.image.read_bytes()
        words = captioner.attention(content)
        image, _, _ = open_rgb(content, TILE)
        draw(image, words).save(options.out)
    except (OSError, ImageError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(" ".join(word.word for word in words) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
