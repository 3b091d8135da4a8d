"""Letters of several hundred typefaces as images: a folder for each typeface, a file for each letter.

    apt install fonts-aenigma
    python examples/real/typefaces.py typefaces/

Brian Kent drew the typefaces. Those without 24 different capital letters are excluded.
"""

import string
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONTS, SIDE, SIZE = Path("/usr/share/fonts/truetype/aenigma"), 64, 48

out, count = Path(sys.argv[1]), 0
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
    if len({image.tobytes() for image in images.values()}) >= 24:
        (out / path.stem).mkdir(parents=True, exist_ok=True)
        for letter, image in images.items():
            image.save(out / path.stem / f"{letter}.png")
        count += 1
print(f"{out}: {count} typefaces")
