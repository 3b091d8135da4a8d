"""Letters of several hundred typefaces as images: a folder for each typeface, a file for each letter.

    apt install fonts-aenigma
    python examples/real/typefaces.py typefaces/

Brian Kent drew the typefaces. Those with two equal capital letters, or with one of another typeface, are
excluded.
"""

import string
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONTS, SIDE, SIZE = Path("/usr/share/fonts/truetype/aenigma"), 64, 48

out, seen = Path(sys.argv[1]), set()
for path in sorted(FONTS.glob("*.ttf")):
    images = {}
    for letter in string.ascii_uppercase:
        font = ImageFont.truetype(path, SIZE)
        left, top, right, bottom = font.getbbox(letter)
        largest = max(right - left, bottom - top)
        if largest > SIDE - 4:
            font = ImageFont.truetype(path, int(SIZE * (SIDE - 6) / largest))
            left, top, right, bottom = font.getbbox(letter)
        images[letter] = Image.new("L", (SIDE, SIDE), 255)
        corner = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
        ImageDraw.Draw(images[letter]).text(corner, letter, font=font, fill=0)
    drawn = frozenset(image.tobytes() for image in images.values())
    if len(drawn) == len(images) and not any(drawn & other for other in seen):
        (out / path.stem).mkdir(parents=True, exist_ok=True)
        for letter, image in images.items():
            image.save(out / path.stem / f"{letter}.png")
        seen.add(drawn)
print(f"{out}: {len(seen)} typefaces")
