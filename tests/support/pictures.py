"""Small pictures with captions, and folders of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}


def write_pictures(folder: Path, count: int = 4, size: tuple[int, int] = (12, 8), captions: bool = True) -> Path:
    """`count` pictures of one colour with a stripe, and metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        name, colour = list(COLOURS.items())[i % len(COLOURS)]
        pixels = np.full((size[1], size[0], 3), colour, np.uint8)
        pixels[i // len(COLOURS) % size[1], :] = 255  # no two files are equal
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        rows.append({"file_name": f"{i:02}.png", "text": f"a {name} wall"})
    if captions:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder
