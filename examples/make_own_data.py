"""Make small files for own-table.yaml and own-sequences.yaml: python make_own_data.py FOLDER.

The table has text, gaps and a class in words; the sequences are waves of two kinds under noise.
"""

import csv
import sys
from pathlib import Path

import numpy as np

ROWS = 300
STEPS = 24


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


def sequences(path: Path, generator: np.random.Generator) -> None:
    """Write waves [rows, steps, 2], slow or fast."""
    fast = np.arange(ROWS) % 2 == 1
    speed = np.where(fast, 0.9, 0.5)[:, None]
    angle = speed * np.arange(STEPS) + generator.uniform(0, 2 * np.pi, (ROWS, 1))
    waves = np.stack([np.sin(angle), np.cos(angle)], axis=2)
    noisy = waves + generator.normal(0.0, 0.5, waves.shape)
    labels = np.where(fast, "fast", "slow")
    np.savez_compressed(path, inputs=noisy.astype(np.float32), targets=labels)


def main(folder: Path) -> None:
    """Write both files into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    table(folder / "customers.csv", generator)
    sequences(folder / "waves.npz", generator)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
