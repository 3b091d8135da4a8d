"""A folder of images with a folder for each class: episodes of few-shot classification."""

import pathlib
import subprocess
import sys

from PIL import Image, ImageDraw

import imaml

FILE = sys.argv[1] if len(sys.argv) > 1 else "shapes.imaml"
FOLDER = pathlib.Path(FILE).parent / "drawings"

if "--adapt" not in sys.argv:
    for corners in range(3, 15):  # polygons: a class for each number of corners and each turn
        for n in range(10):
            image = Image.new("L", (64, 64), 255)
            circle = (32 + n % 3, 32 - n % 2, 18 + n)
            ImageDraw.Draw(image).regular_polygon(circle, corners, rotation=11 * corners, outline=0, width=3)
            (FOLDER / f"{corners} corners").mkdir(parents=True, exist_ok=True)
            image.save(FOLDER / f"{corners} corners" / f"{n}.png")
    run = imaml.fit(imaml.Tasks.from_folder(FOLDER), ways=2, shots=1, steps=60)
    print(run.evaluate(tasks=200))
    run.save(FILE)
    subprocess.run([sys.executable, __file__, FILE, "--adapt"], check=True)  # another process
else:
    print(imaml.load(FILE).adapt_folder(FOLDER))
