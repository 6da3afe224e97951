"""Hourly weather: both formats from files written here, the split, the scales, one clear error."""

import inspect

import jax
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem, Sequence
from jaxevo.registry.settings import documented
from jaxevo.tasks.weather import BEIJING, NUM_HOURS, WTH, read_weather, synthetic_weather

KEY = jax.random.key(0)

WTH_HEADER = [
    "date",
    "Visibility",
    "DryBulbFarenheit",
    "DryBulbCelsius",
    "WetBulbFarenheit",
    "DewPointFarenheit",
    "DewPointCelsius",
    "RelativeHumidity",
    "WindSpeed",
    "WindDirection",
    "StationPressure",
    "Altimeter",
    "WetBulbCelsius",
]
BEIJING_HEADER = [
    "No",
    "year",
    "month",
    "day",
    "hour",
    "pm2.5",
    "DEWP",
    "TEMP",
    "PRES",
    "cbwd",
    "Iws",
    "Is",
    "Ir",
]


def write(path, header, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n")
    return str(path)


@pytest.fixture
def wth(tmp_path):
    """A file of 200 hours in the format of WTH.csv, and its nine channels."""
    channels = synthetic_weather(200, 0)
    columns = dict(zip(WTH.numbers, channels.T, strict=True))
    rows = [
        [columns[name][hour] if name in columns else "2010-01-01 00:00:00" for name in WTH_HEADER]
        for hour in range(200)
    ]
    return write(tmp_path / "WTH.csv", WTH_HEADER, rows), channels


def beijing_rows(num_hours):
    rng = np.random.default_rng(0)
    words = [BEIJING.words["cbwd"][i] for i in rng.integers(0, 4, num_hours)]
    numbers = rng.normal(size=(num_hours, 6)).round(3)
    rows = [
        [hour, 2010, 1, 1, hour, "NA", *row[:3], word, *row[3:]]
        for hour, (row, word) in enumerate(zip(numbers.tolist(), words, strict=True))
    ]
    return rows, numbers, words


@pytest.mark.parametrize("scaling", ["standardized", "released"])
def test_wth_is_split_in_time_scaled_and_cut_into_stretches(wth, scaling):
    path, channels = wth
    task = tasks.weather(
        path=path, delay=6, scaling=scaling, num_series=3, num_train=140, num_skipped=2, window=10
    )
    # 140 // 3 = 46 hours for training, (200 - 140 - 6) // 3 = 18 held out
    assert task.train_inputs.shape == (46, 3, 9) and task.train_targets.shape == (46, 3, 1)
    assert task.test_inputs.shape == (18, 3, 9) and task.input_shape == (9,)
    assert task.num_windows == 4 and (task.loss, task.num_outputs) == ("squared_error", 1)
    if scaling == "released":
        offset, scale = channels.min(0), np.ptp(channels, 0)
    else:
        offset, scale = channels[:140].mean(0), channels[:140].std(0)
    assert task.scale == pytest.approx(scale[1], rel=1e-6)
    for inputs, targets, start in (
        (task.train_inputs, task.train_targets, 0),
        (task.test_inputs, task.test_targets, 140),
    ):
        length = len(inputs)
        for b in range(3):
            rows = slice(start + b * length, start + (b + 1) * length)
            expected = (channels[rows] - offset) / scale
            np.testing.assert_allclose(inputs[:, b], expected, atol=1e-5)
            later = channels[rows.start + 6 : rows.stop + 6, 1]
            np.testing.assert_allclose(targets[:, b, 0] * scale[1] + offset[1], later, atol=1e-5)
    if scaling == "released":
        both = np.concatenate([task.train_inputs, task.test_inputs])
        assert both.min() >= 0 and both.max() <= 1


def test_the_released_split_has_no_held_out_target(wth):
    """Red if the last training inputs, whose targets are held-out rows, are trained on."""
    path, channels = wth
    sizes = {"path": path, "delay": 6, "num_series": 2, "num_train": 140, "num_skipped": 0}
    task = tasks.weather(**sizes, split="released")
    assert task.train_inputs.shape == (67, 2, 9)  # (140 - 6) // 2
    back = task.train_targets[-1, 1, 0] * task.scale + channels[:140, 1].mean()
    assert back == pytest.approx(channels[139, 1], abs=1e-4)
    assert task.test_inputs.shape == tasks.weather(**sizes).test_inputs.shape
    with pytest.raises(ValueError, match="num_train must be >= 8"):
        tasks.weather(path=path, delay=6, num_series=2, num_train=7, split="released")


def test_beijing_has_numbers_then_directions_of_wind(tmp_path):
    rows, numbers, words = beijing_rows(120)
    path = write(tmp_path / "air.csv", BEIJING_HEADER, rows)
    channels, kind = read_weather(path)
    assert kind is BEIJING and channels.shape == (120, 10)
    np.testing.assert_array_equal(channels[:, :6], numbers)
    np.testing.assert_array_equal(
        channels[:, 6:], [[word == name for name in ("NE", "NW", "SE", "cv")] for word in words]
    )
    task = tasks.weather(path=path, delay=1, num_series=2, num_skipped=0)
    assert task.train_inputs.shape == (48, 2, 10)  # four fifths of 120, in two
    temperature = np.asarray(task.train_targets)[:, 0, 0] * task.scale + numbers[:96, 1].mean()
    np.testing.assert_allclose(temperature, numbers[1:49, 1], atol=1e-5)


def test_columns_may_stand_in_any_order_and_have_a_mark_before_them(tmp_path):
    rows, numbers, _ = beijing_rows(5)
    turned = [row[::-1] for row in rows]
    path = tmp_path / "turned.csv"
    write(path, BEIJING_HEADER[::-1], turned)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    np.testing.assert_array_equal(read_weather(str(path))[0][:, :6], numbers)


def test_the_stand_in_is_seeded_correlated_and_of_the_published_length():
    task = tasks.weather()
    assert task.train_inputs.shape == (3360, 10, 9)
    assert task.test_inputs.shape == ((NUM_HOURS - 33_600 - 24) // 10, 10, 9)
    assert task.held_out().sample(KEY, 0).weights[:, 0].astype(bool).sum() == 94  # 144 - 50
    channels = synthetic_weather(NUM_HOURS, 0)
    assert np.array_equal(channels, synthetic_weather(NUM_HOURS, 0))
    assert not np.array_equal(channels, synthetic_weather(NUM_HOURS, 1))
    correlations = np.corrcoef(channels.T)[np.triu_indices(9, 1)]
    assert abs(correlations).max() > 0.5
    # a day and a year stand out of the spectrum of some channel
    power = abs(np.fft.rfft(channels - channels.mean(0), axis=0)) ** 2
    for cycles in (4, NUM_HOURS // 24):
        assert (power[cycles] > 100 * np.median(power, 0)).any()


def test_it_composes_with_a_recurrent_network(wth):
    task = tasks.weather(path=wth[0], delay=2, num_series=2, num_skipped=3, window=8)
    problem = Problem(task, models.recurrent(task.input_shape, task.num_outputs))
    assert isinstance(problem, Sequence)
    params = problem.init(KEY)
    held_out = problem.held_out()
    evaluation = held_out.evaluate(params, held_out.sample(KEY, 0))
    # a network that starts at zero answers the training mean: its error is the targets' own
    targets = np.asarray(task.test_targets)[3:] * task.scale
    assert evaluation.metrics["mse"] == pytest.approx(np.mean(targets**2), rel=1e-4)


def test_real_weather(data_dir):
    (path,) = (data_dir / "beijing_weather").glob("*.csv")
    task = tasks.weather(path=str(path))
    assert task.train_inputs.shape == (3505, 10, 10)
    # degrees Celsius of Beijing: the deviation of its hours is near 12
    assert 11 < task.scale < 13
    assert tasks.persistence(task)["mse"] == pytest.approx(12.3, abs=0.1)


def broken(path, how):
    rows, *_ = beijing_rows(60)
    header = list(BEIJING_HEADER)
    if how == "column":
        header[7] = "temperature"
    elif how == "value":
        rows[4][6] = "NA"
    elif how == "word":
        rows[7][9] = "SW"
    elif how == "row":
        rows[9] = rows[9][:-1]
    elif how == "short":
        rows = rows[:20]
    return write(path, header, rows)


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("column", r"must have the columns of WTH.csv or of .*; nearest is the Bei.* lacks TEMP$"),
        ("value", r"DEWP must be finite numbers, got 'NA' in row 5"),
        ("word", r"cbwd must be one of NE, NW, SE, cv, got 'SW' in row 8"),
        ("row", r"every row must have 13 values, got 12 in row 10"),
        ("short", r"num_train must be from 10 to -14, with 20 rows, 10 series and a delay of 24"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, how, shown):
    path = broken(tmp_path / "wrong.csv", how)
    with pytest.raises(ValueError, match=shown) as caught:
        tasks.weather(path=path)
    assert "\n" not in str(caught.value)


def test_no_file_no_text_and_no_rows(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must name a CSV file, got 'nowhere"):
        tasks.weather(path="nowhere.csv")
    path = tmp_path / "picture.csv"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"path must name a CSV file, and .*picture.csv is none"):
        tasks.weather(path=str(path))
    path.write_text("")
    with pytest.raises(ValueError, match="it lacks DEWP, TEMP, PRES, Iws, Is, Ir, cbwd"):
        tasks.weather(path=str(path))
    write(path, WTH_HEADER, [])
    with pytest.raises(ValueError, match="with 0 rows"):
        tasks.weather(path=str(path))


def test_every_keyword_has_help_and_bad_ones_are_refused(wth):
    parameters = inspect.signature(tasks.weather).parameters
    assert set(documented(tasks.weather, "Args")) == set(parameters)
    for settings, shown in (
        ({"delay": 0}, "delay must be an integer >= 1, got 0"),
        ({"num_series": 0}, "num_series must be an integer >= 1, got 0"),
        ({"num_train": 3}, "num_train must be from 10 to 166"),
        ({"num_train": 170}, "num_train must be from 10 to 166"),
        ({"window": 17}, "window must be from 1 to 16, got 17"),
        ({"num_skipped": 2, "window": 5}, "num_skipped must be below 1"),
    ):
        with pytest.raises(ValueError, match=shown):
            tasks.weather(path=wth[0], **{"window": 5, "num_skipped": 0} | settings)
