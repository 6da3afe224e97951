"""Hourly weather: the temperature to come, forecast hour by hour from all channels.

Source: file WTH.csv of Zhou et al., Informer, arXiv 2012.07436, in the form that Fernandez,
Keemink and van Gerven (2024) give it. Another file is that of Beijing PM2.5, by Liang et al.
(2015), UCI Machine Learning Repository.
"""

import csv
import pathlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from jaxevo.core import require, require_choice, require_integer
from jaxevo.core.pytrees import checked
from jaxevo.tasks.sequences import Stream


class Format(NamedTuple):
    """A kind of file: the columns that are read, and what they are for.

    Attributes:
        numbers: columns that are inputs as they are.
        target: the column that is to be forecast, one of `numbers`.
        words: columns of words with the words that each may hold; they become one-hot inputs
            after the numbers.
        num_train: rows to train on, where the file has more; None: four fifths.
    """

    name: str
    numbers: tuple[str, ...]
    target: str
    words: Mapping[str, tuple[str, ...]]
    num_train: int | None = None


WTH = Format(
    "WTH.csv",
    (
        "Visibility",
        "DryBulbFarenheit",
        "WetBulbFarenheit",
        "DewPointFarenheit",
        "RelativeHumidity",
        "WindSpeed",
        "WindDirection",
        "StationPressure",
        "Altimeter",
    ),
    target="DryBulbFarenheit",
    words={},
    num_train=33_600,
)

# The column pm2.5 has gaps and is no weather, so it is not read.
BEIJING = Format(
    "the Beijing PM2.5 file",
    ("DEWP", "TEMP", "PRES", "Iws", "Is", "Ir"),
    target="TEMP",
    words={"cbwd": ("NE", "NW", "SE", "cv")},
)

FORMATS = (WTH, BEIJING)
NUM_HOURS = 35_064  # four years, one of them a leap year: the length of WTH.csv


@checked
def weather(
    *,
    path: str | None = None,
    delay: int = 24,
    scaling: Literal["standardized", "released"] = "standardized",
    split: Literal["all", "released"] = "all",
    window: int | None = 24,
    num_series: int = 10,
    num_train: int | None = None,
    num_skipped: int = 50,
    seed: int = 0,
) -> Stream:
    """Hourly weather as a stream: the temperature `delay` hours ahead, from all channels now.

    Rows before a date are for training, and the rest is held out. Either part is cut into
    `num_series` stretches of equal length that run side by side:

        time  1 2 3 4 5 6 | 7 8 9 10 11 12       num_series = 2: training  1 2 3   held out  7  8  9
              training    | held out                                       4 5 6            10 11 12

    The metric `mse` is in the file's own units, squared.

    Differs: each channel is standardised by its mean and deviation over the training rows. The
    authors stretch it to [0, 1] by its range over all rows, the held-out ones included
    (`scaling="released"`), and leave out the last `delay` training rows, whose targets are held
    out (`split="released"`). Held-out series start from a zero state and their first steps do not
    count, where the authors go on from the last training state.

    Args:
        path: The data are a CSV file with a header. Of WTH.csv 9 channels are read, without the
            date and the three Celsius columns that repeat others. Of the Beijing PM2.5 file 6
            channels and 4 directions of wind, one-hot, are read. None: `synthetic_weather` stands
            in.
        delay: The target is this many hours ahead, >= 1; the authors take 1, 24 and 48.
        scaling: The channels are "standardized" or "released".
        split: With "all", every training row is an input, and the last `delay` targets are
            held-out rows. With "released", as in the authors' code, these inputs are left out.
        window: A learning step takes this many hours; None: whole series.
        num_series: B >= 1 stretches run side by side.
        num_train: This many rows, the first ones, are trained on. None: 33,600 of WTH.csv and of
            the stand-in, and four fifths of any other file.
        num_skipped: This many held-out hours at the start of each stretch do not count.
        seed: The stand-in has this seed.

    Raises:
        FileNotFoundError: no file has that name.
        ValueError: columns or values are missing, or a setting is bad.
    """
    require_integer("delay", 1, delay)
    require_integer("num_series", 1, num_series)
    require_integer("num_train", 1, num_train)
    require_choice("scaling", ("standardized", "released"), scaling)
    require_choice("split", ("all", "released"), split)
    if path is None:
        rows, kind = synthetic_weather(NUM_HOURS, seed), WTH
    else:
        rows, kind = read_weather(path)
    if num_train is None:
        whole = kind.num_train is not None and kind.num_train < len(rows)
        num_train = kind.num_train if whole else len(rows) * 4 // 5
    most = len(rows) - delay - num_series
    require(
        "num_train",
        f"from {num_series} to {most}, with {len(rows):,} rows, {num_series} series "
        f"and a delay of {delay}",
        num_train,
        lambda n: num_series <= n <= most,
    )
    if scaling == "released":
        offset, scale = rows.min(0), np.ptp(rows, 0)
    else:
        offset, scale = rows[:num_train].mean(0), rows[:num_train].std(0)
    scale = np.where(scale > 0, scale, 1)  # a channel that never changes stays as it is
    scaled = ((rows - offset) / scale).astype(np.float32)
    assert num_train is not None  # it is a number by now
    last = num_train if split == "all" else num_train - delay
    require("num_train", f">= {num_series + delay}", num_train, lambda _: last >= num_series)
    target = kind.numbers.index(kind.target)
    inputs, targets = scaled[:-delay], scaled[delay:, target : target + 1]
    return Stream(
        scale=scale[target],
        train_inputs=_side_by_side(inputs[:last], num_series),
        train_targets=_side_by_side(targets[:last], num_series),
        test_inputs=_side_by_side(inputs[num_train:], num_series),
        test_targets=_side_by_side(targets[num_train:], num_series),
        window=window,
        num_skipped=num_skipped,
    )


def _side_by_side(rows: np.ndarray, num_series: int) -> np.ndarray:
    """Equal contiguous stretches of [n, I] as [n // B, B, I]."""
    length = len(rows) // num_series
    return rows[: length * num_series].reshape(num_series, length, -1).swapaxes(0, 1)


def synthetic_weather(num_hours: int, seed: int) -> np.ndarray:
    """Nine correlated channels without a unit, [num_hours, 9], in place of a file.

    Each channel is a random mixture of seven sources, with white noise of deviation 0.1. The
    sources are cosine and sine of the year and of the day, and three autoregressive processes of
    first order and unit variance. The processes forget in 6 hours, 2 days and a week.
    """
    rng = np.random.default_rng(seed)
    angles = 2 * np.pi * np.arange(num_hours)[:, None] / (24 * 365.25, 24)
    memory = np.exp(-1 / np.array([6, 48, 168]))
    shocks = rng.normal(size=(num_hours, 3)) * np.sqrt(1 - memory**2)
    fronts, front = np.empty_like(shocks), rng.normal(size=3)
    for hour, shock in enumerate(shocks):
        fronts[hour] = front = memory * front + shock
    sources = np.concatenate([np.cos(angles), np.sin(angles), fronts], axis=1)
    mixtures = sources @ rng.normal(size=(sources.shape[1], 9))
    return mixtures + 0.1 * rng.normal(size=mixtures.shape)


def read_weather(path: str) -> tuple[np.ndarray, Format]:
    """The inputs of a file, [n, I], one-hot words after the numbers, and its format.

    Raises:
        FileNotFoundError: no file has that name.
        ValueError: columns are missing, or a value cannot be read; the error says which.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"path must name a CSV file, got {path!r}")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"path must name a CSV file, and {path} is none: {error}") from None
    header = [name.strip() for name in rows[0]] if rows else []
    kind = _format(path, header)
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(
                f"{path}: every row must have {len(header)} values, got {len(row)} in row {number}"
            )
    columns = {name: [row[at] for row in rows[1:]] for at, name in enumerate(header)}
    parts = [_numbers(path, name, columns[name]) for name in kind.numbers]
    for name, words in kind.words.items():
        parts += _one_hot(path, name, columns[name], words)
    return np.stack(parts, axis=1), kind


def _format(path: str, header: list[str]) -> Format:
    """The format whose columns are all in the header."""

    def missing(kind: Format) -> list[str]:
        return [name for name in (*kind.numbers, *kind.words) if name not in header]

    nearest = min(FORMATS, key=lambda kind: len(missing(kind)))
    if missing(nearest):
        known = " or of ".join(kind.name for kind in FORMATS)
        raise ValueError(
            f"{path} must have the columns of {known}; nearest is {nearest.name}, and it lacks "
            f"{', '.join(missing(nearest))}"
        )
    return nearest


def _numbers(path: str, name: str, values: list[str]) -> np.ndarray:
    numbers = np.array([_number(value) for value in values])
    for row in np.flatnonzero(~np.isfinite(numbers)):
        raise ValueError(
            f"{path}: {name} must be finite numbers, got {values[row]!r} in row {row + 1}"
        )
    return numbers


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")


def _one_hot(path: str, name: str, values: list[str], words: tuple[str, ...]) -> list[np.ndarray]:
    for row, value in enumerate(values):
        if value not in words:
            raise ValueError(
                f"{path}: {name} must be one of {', '.join(words)}, got {value!r} in row {row + 1}"
            )
    return [np.array([float(value == word) for value in values]) for word in words]
