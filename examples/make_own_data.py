"""Make small files for the studies own-*.yaml: python make_own_data.py FOLDER.

The table has text, gaps and a class in words, as CSV and, where pyarrow is, as Parquet; another is
a shop's visitors by day; the sequences are waves of two kinds under noise; the images are rings and
crosses.
"""

import csv
import importlib.util
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

ROWS = 300
STEPS = 24
SIDE = 24  # pixels
IMAGES = 60


def table(path: Path, generator: np.random.Generator) -> None:
    """Write customers: who is young, on the small plan or spends little leaves more often."""
    age = generator.integers(18, 80, ROWS)
    plan = generator.choice(["small", "medium", "large"], ROWS)
    region = generator.integers(1, 5, ROWS)
    spend = generator.gamma(3.0, 20.0, ROWS)
    pull = 0.05 * (45 - age) + 2.0 * (plan == "small") + 0.03 * (50 - spend)
    leaves = generator.random(ROWS) < 1 / (1 + np.exp(-pull))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "plan", "region", "spend", "leaves"])
        for row in zip(age, plan, region, spend, leaves, strict=True):
            known = f"{row[3]:.2f}" if generator.random() < 0.9 else ""
            writer.writerow([row[0], row[1], row[2], known, "yes" if row[4] else "no"])


def visits(path: Path, generator: np.random.Generator) -> None:
    """Write a shop's visitors by day, who become more over the year and fewer in the rain."""
    days = np.arange("2024-01-01", "2024-12-01", dtype="datetime64[D]")
    weekday = (np.arange(len(days)) % 7).astype(int)
    rain = generator.gamma(0.5, 6.0, len(days))
    grown = 200 + 0.4 * np.arange(len(days)) + 120 * (weekday >= 5) - 4 * rain
    visitors = np.round(grown + generator.normal(0, 15, len(days))).astype(int)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["day", "number", "weekday", "rain", "visitors"])
        for n, day in enumerate(days):
            writer.writerow([day, n, weekday[n], f"{rain[n]:.1f}", visitors[n]])


def sequences(path: Path, generator: np.random.Generator) -> None:
    """Write waves [rows, steps, 2], slow or fast."""
    fast = np.arange(ROWS) % 2 == 1
    speed = np.where(fast, 0.9, 0.5)[:, None]
    angle = speed * np.arange(STEPS) + generator.uniform(0, 2 * np.pi, (ROWS, 1))
    waves = np.stack([np.sin(angle), np.cos(angle)], axis=2)
    noisy = waves + generator.normal(0.0, 0.5, waves.shape)
    labels = np.where(fast, "fast", "slow")
    np.savez_compressed(path, inputs=noisy.astype(np.float32), targets=labels)


def images(path: Path, generator: np.random.Generator) -> None:
    """Write a zip with the folders `ring` and `cross`."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(IMAGES):
            kind = ("ring", "cross")[number % 2]
            picture = Image.new("L", (SIDE, SIDE), int(generator.integers(0, 60)))
            draw = ImageDraw.Draw(picture)
            left, top = generator.integers(1, SIDE // 2, 2).tolist()
            right, bottom = left + SIDE // 2 - 1, top + SIDE // 2 - 1
            if kind == "ring":
                draw.ellipse((left, top, right, bottom), outline=220, width=2)
            else:
                draw.line((left, top, right, bottom), fill=220, width=2)
                draw.line((left, bottom, right, top), fill=220, width=2)
            content = io.BytesIO()
            picture.save(content, "PNG")
            archive.writestr(f"shapes/{kind}/{number}.png", content.getvalue())


def main(folder: Path) -> None:
    """Write the files into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    table(folder / "customers.csv", generator)
    sequences(folder / "waves.npz", generator)
    images(folder / "shapes.zip", generator)
    visits(folder / "visits.csv", generator)
    if importlib.util.find_spec("pyarrow"):
        pd.read_csv(folder / "customers.csv").to_parquet(folder / "customers.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
