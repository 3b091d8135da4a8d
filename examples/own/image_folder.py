"""A folder of images with a folder for each class: episodes of few-shot classification."""

import pathlib
import subprocess
import sys

from PIL import Image, ImageDraw

import imaml

FILE = sys.argv[1] if len(sys.argv) > 1 else "shapes.imaml"
FOLDER = pathlib.Path(FILE).with_suffix("")
if "--adapt" not in sys.argv:
    for turn, n in ((turn, n) for turn in range(20) for n in range(10)):  # lines at 20 angles
        image = Image.new("L", (64, 64), 255)
        ImageDraw.Draw(image).line((10 + n, 32, 54 - n, 32), fill=0, width=3 + n % 4)
        (FOLDER / f"angle {turn}").mkdir(parents=True, exist_ok=True)
        image.rotate(9 * turn, fillcolor=255).save(FOLDER / f"angle {turn}" / f"{n}.png")
    run = imaml.fit(imaml.Tasks.from_folder(FOLDER), imaml.Conv4(3, 8), ways=3, shots=1, steps=60)
    print(run.evaluate(tasks=200), flush=True)
    run.save(FILE)
    subprocess.run([sys.executable, __file__, FILE, "--adapt"], check=True)  # another process
else:
    predictor = imaml.load(FILE).adapt([FOLDER / "angle 0/0.png", FOLDER / "angle 9/0.png"], ["-", "|"])
    print(predictor.classes, predictor.predict_proba([FOLDER / "angle 9/5.png"]))
