"""Five tables in the style of public ones: mixed types, gaps, unequal classes, 14 to 30,000 rows.

They are drawn, not copied: whoever has no network can make them, and no row is anybody's. Every
table has a column `part` (train, validation, test), so that whoever is compared sees the same rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

Generator = np.random.Generator
Frame = pd.DataFrame


@dataclass(frozen=True)
class PublicTable:
    """One table, and how it is judged.

    Attributes:
        draw: Rows by a generator; the target is the column `target`.
        metric: accuracy, auroc or r2.
        categorical: Columns of numbers that are categories.
    """

    draw: Callable[[Generator, int], Frame]
    rows: int
    metric: str
    categorical: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number."""
        return self.metric == "r2"

    def frame(self, seed: int) -> Frame:
        """Return the table with its parts: 60% train, 20% validation, 20% test."""
        generator = np.random.default_rng(seed)
        frame = self.draw(generator, self.rows)
        share = np.arange(self.rows) / self.rows
        part = np.where(share < 0.6, "train", np.where(share < 0.8, "validation", "test"))
        # With each class's share in every part, as both sides would split.
        order = np.argsort(
            generator.random(self.rows)
            if self.is_regression
            else _spread(frame["target"].to_numpy(), generator),
            kind="stable",
        )
        parts = np.empty(self.rows, object)
        parts[order] = part
        return frame.assign(part=parts)


def _spread(labels: object, generator: Generator) -> object:
    """Return numbers in 0 to 1 by which each class is spread evenly over the order."""
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    place = np.empty(len(codes))
    for code in np.unique(codes):
        rows = generator.permutation(np.flatnonzero(codes == code))
        place[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
    return place


def _holes(values: object, share: float, generator: Generator) -> object:
    """Return the values with a share of them missing."""
    cells = pd.Series(values).astype(object)
    return cells.mask(generator.random(len(cells)) < share)


def _chance(logit: object) -> object:
    return 1 / (1 + np.exp(-np.asarray(logit)))


def tennis(generator: Generator, rows: int) -> Frame:
    """Draw days on which somebody plays, by the weather; a rule with few exceptions."""
    outlook = generator.choice(["sunny", "overcast", "rain"], rows)
    humid = generator.choice(["high", "normal"], rows)
    wind = generator.choice(["weak", "strong"], rows)
    plays = (outlook == "overcast") | ((outlook == "sunny") & (humid == "normal"))
    plays |= (outlook == "rain") & (wind == "weak")
    plays[:2] = [True, False]
    target = np.where(plays, "yes", "no")
    temperature = generator.integers(15, 32, rows)
    columns = {"outlook": outlook, "temperature": temperature, "humidity": humid, "wind": wind}
    return pd.DataFrame({**columns, "target": target})


def passengers(generator: Generator, rows: int) -> Frame:
    """Draw passengers of a ship that sinks: class, sex, age with gaps, fare, port."""
    rank = generator.choice([1, 2, 3], rows, p=[0.24, 0.21, 0.55])
    female = generator.random(rows) < 0.35
    age = np.clip(generator.normal(30, 14, rows), 0.5, 80).round(1)
    fare = (generator.lognormal(2.2, 0.7, rows) * (4 - rank) ** 1.2).round(2)
    family = generator.poisson(0.9, rows)
    port = generator.choice(["S", "C", "Q"], rows, p=[0.72, 0.19, 0.09])
    logit = 2.6 * female - 1.0 * (rank - 2) - 0.025 * (age - 30) - 0.25 * family
    logit += 0.5 * (port == "C") + 1.2 * (age < 10) - 1.1
    survived = generator.random(rows) < _chance(logit)
    return pd.DataFrame(
        {
            "class": rank,
            "sex": np.where(female, "female", "male"),
            "age": _holes(age, 0.2, generator),
            "family": family,
            "fare": fare,
            "port": _holes(port, 0.01, generator),
            "target": np.where(survived, "survived", "died"),
        }
    )


def houses(generator: Generator, rows: int) -> Frame:
    """Draw prices of houses by size, age, quality, street and garage, with gaps."""
    area = generator.lognormal(7.2, 0.33, rows).round()
    built = generator.integers(1900, 2011, rows)
    quality = np.clip(generator.normal(6, 1.4, rows).round(), 1, 10)
    street = generator.choice([f"street {n}" for n in range(25)], rows)
    worth = generator.normal(0, 0.18, 25)
    by_street = worth[[int(name.split()[1]) for name in street]]
    garage = generator.choice(["attached", "detached", "none"], rows, p=[0.6, 0.3, 0.1])
    log_price = 6.3 + 0.72 * np.log(area) + 0.085 * quality + 0.0025 * (built - 1950) + by_street
    log_price += 0.06 * (garage == "attached") + generator.normal(0, 0.1, rows)
    return pd.DataFrame(
        {
            "area": area,
            "lot": _holes(generator.lognormal(9.1, 0.4, rows).round(), 0.18, generator),
            "built": built,
            "quality": quality,
            "street": street,
            "garage": _holes(garage, 0.05, generator),
            "target": np.exp(log_price).round(-2),
        }
    )


def payments(generator: Generator, rows: int) -> Frame:
    """Draw card payments of which one in sixty is a fraud, by amount, hour, country, and habits."""
    amount = generator.lognormal(3.2, 1.1, rows).round(2)
    hour = generator.integers(0, 24, rows)
    country = generator.choice(["home", "near", "far"], rows, p=[0.85, 0.11, 0.04])
    habits = generator.normal(size=(rows, 8)).round(4)
    logit = -6.0 + 0.8 * np.log(amount / 25) + 1.3 * ((hour < 6) | (hour > 22))
    logit += 1.1 * (country == "near") + 2.4 * (country == "far")
    logit += 0.9 * habits[:, 0] - 0.7 * habits[:, 1] * habits[:, 2]
    fraud = generator.random(rows) < _chance(logit)
    columns = {f"v{n}": habits[:, n] for n in range(8)}
    return pd.DataFrame(
        {
            "amount": amount, "hour": hour, "country": country, **columns,
            "target": np.where(fraud, "fraud", "genuine"),
        }
    )  # fmt: skip


def incomes(generator: Generator, rows: int) -> Frame:
    """Draw people who earn much or little, by age, school, work, hours and gains."""
    age = generator.integers(17, 80, rows)
    school = generator.choice(
        ["none", "school", "college", "bachelor", "master", "doctor"], rows,
        p=[0.13, 0.33, 0.27, 0.18, 0.07, 0.02],
    )  # fmt: skip
    years = pd.Series(school).map(
        {"none": 8, "school": 10, "college": 11, "bachelor": 13, "master": 15, "doctor": 17}
    ).to_numpy()  # fmt: skip
    work = generator.choice([f"work {n}" for n in range(14)], rows)
    pay = generator.normal(0, 0.8, 14)[[int(name.split()[1]) for name in work]]
    married = generator.random(rows) < _chance((age - 32) / 8)
    hours = np.clip(generator.normal(40, 12, rows).round(), 1, 99)
    gains = np.where(generator.random(rows) < 0.08, generator.lognormal(8.3, 1.0, rows), 0).round()
    logit = -4.2 + 0.35 * (years - 10) + 0.04 * (hours - 40) + 1.9 * married + pay
    logit += 3.5 * (gains > 5000) - 0.002 * (age - 50) ** 2 + 0.6
    rich = generator.random(rows) < _chance(logit)
    return pd.DataFrame(
        {
            "age": age,
            "school": school,
            "work": _holes(work, 0.06, generator),
            "married": np.where(married, "yes", "no"),
            "hours": hours,
            "gains": gains,
            "target": np.where(rich, ">50K", "<=50K"),
        }
    )


PUBLIC_TABLES: Mapping[str, PublicTable] = {
    "tennis": PublicTable(tennis, 14, "accuracy"),
    "passengers": PublicTable(passengers, 891, "auroc", ("class",)),
    "houses": PublicTable(houses, 1460, "r2"),
    "payments": PublicTable(payments, 10_000, "auroc"),
    "incomes": PublicTable(incomes, 30_000, "accuracy"),
}
