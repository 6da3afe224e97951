import dataclasses
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxevo import plotting, tasks
from jaxevo.core import Problem
from jaxevo.models import mlp, recurrent
from jaxevo.plotting import lines
from jaxevo.studies.gradient_alignment import Alignment

NAN, INF = float("nan"), float("inf")


def one(values, name="loss", first=1, **more):
    return [{"step": first + i, "seconds": i / 4, name: v} | more for i, v in enumerate(values)]


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def assert_nothing_overlaps(figure):
    """No two texts of the figure share a pixel, and none is cut off at an edge."""
    figure.draw_without_rendering()
    found = [*figure.texts, *(t for legend in figure.legends for t in legend.get_texts())]
    for ax in figure.axes:
        found += [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title]
        found.append(ax._right_title)
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            found += [
                t.label1
                for t in axis.get_major_ticks()
                if min(limits) <= t.get_loc() <= max(limits)
            ]
    boxes = [t.get_window_extent() for t in found if t.get_text() and t.get_visible()]
    low, high = zip(*((box.min, box.max) for box in boxes), strict=True)
    assert np.min(low) >= -1
    assert (np.max(high, axis=0) <= np.add(figure.bbox.max, 1)).all()
    for i, box in enumerate(boxes):
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in boxes[:i])


ROWS = [
    {
        "step": 10 * i,
        "seconds": 0.5 * i,
        "loss": [4.0**-i, 3 * 4.0**-i],
        "mse": [1.0 / i, 2.0 / i],
        "held_out/loss": [2.0, 4.0],
        "held_out/mse": [0.5, 0.7],
    }
    for i in range(1, 5)
]
LEVELS = {"persistence": {"mse": 0.3}, "taps": {"mse": 0.301}, "majority": {"accuracy": 0.1}}


def test_curve_draws_means_and_bands_of_seeds():
    figure = plotting.curve(ROWS, LEVELS, "a title", "mse")
    assert isinstance(figure, Figure)
    loss, mse = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), [10, 20, 30, 40])
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2 * 4.0**-i for i in range(1, 5)])
    np.testing.assert_allclose(loss.lines[1].get_ydata(), 3.0)
    np.testing.assert_allclose(mse.lines[1].get_ydata(), 0.6)
    band = loss.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 4.0**-4
    assert band[:, 1].max() == 3 / 4
    assert loss.get_yscale() == "log"  # 4^-4 to 4
    assert mse.get_yscale() == "linear"  # 0.25 to 2
    assert loss.get_ylabel() == "loss\n(squared error, scaled data)"
    assert mse.get_ylabel() == "mse\n(squared units of the data)"
    assert mse.get_title(loc="right") == "lower is better"
    assert mse.get_xlabel() == "training steps"
    expected = ["training", "held out", "line: mean of 2 seeds; band: lowest to highest"]
    assert labels(figure) == expected
    assert figure.get_suptitle() == "a title"


def test_baselines_are_named_in_the_panel_of_their_metric():
    loss, mse = plotting.curve(ROWS, LEVELS).axes
    assert texts(loss) == []
    assert texts(mse) == ["persistence", "taps"]
    assert [line.get_ydata()[0] for line in mse.lines[2:]] == [0.3, 0.301]
    assert mse.lines[2].get_linestyle() == mse.lines[3].get_linestyle() == "--"  # dashed both,
    assert mse.lines[2]._unscaled_dash_pattern != mse.lines[3]._unscaled_dash_pattern  # not alike


def test_labels_of_near_baselines_keep_their_order_and_distance():
    places = lines.apart([0.5, 0.1, 0.51, 0.49], 0.1)
    np.testing.assert_allclose(places, [0.5, 0.1, 0.6, 0.4])
    assert lines.apart([], 0.1) == []


def test_one_seed_has_no_band_and_the_accuracy_no_log_axis():
    rows = one([2.0, 1.0], **{"held_out/accuracy": 0.5})
    rows[0]["held_out/accuracy"] = 0.01
    figure = plotting.curve(rows)
    loss, accuracy = figure.axes
    assert not loss.collections
    assert labels(figure) == ["training", "held out"]
    assert loss.get_ylabel() == "loss\n(nats)"
    assert accuracy.get_yscale() == "linear"
    assert accuracy.get_ylabel() == "accuracy\n(fraction right)"
    assert accuracy.get_title(loc="right") == "higher is better"


def test_a_single_row_is_a_visible_point():
    figure = plotting.curve(one([2.0]))
    (ax,) = figure.axes
    assert ax.lines[0].get_marker() == "o"
    assert list(ax.lines[0].get_markevery()) == [0]
    assert ax.get_xlim() == (0, 2)

    figure = plotting.curve(one([2.0], **{"held_out/loss": 1.0, "held_out/mse": 1.0}))
    loss, mse = figure.axes
    assert [line.get_marker() for line in (*loss.lines, *mse.lines)] == ["o", "s", "s"]
    handles = figure.legends[0].get_lines()
    assert [line.get_marker() for line in handles] == ["o", "s"]


def test_values_that_are_not_finite_are_left_out_and_marked():
    rows = one([[1.0, 2.0], [NAN, 4.0], [INF, "nan"], [None, -INF], [1.0, 3.0]])
    figure = plotting.curve(rows)
    line, crosses = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [1.5, 4.0, NAN, NAN, 2.0])
    assert list(line.get_markevery()) == [4]  # between a gap and the end
    np.testing.assert_array_equal(crosses.get_xdata(), [2, 3, 4])
    assert labels(figure)[-1] == "not finite, left out"

    nothing = plotting.curve(one([NAN, NAN]))
    assert texts(nothing.axes[0]) == ["no finite value"]
    nothing.draw_without_rendering()


def test_an_axis_with_zeros_or_less_than_a_decade_stays_linear():
    for values, scale in (([0.0, 100], "linear"), ([1, 9], "linear"), ([1, 11.0], "log")):
        assert plotting.curve(one(values)).axes[0].get_yscale() == scale


def test_rows_without_a_metric_are_no_gaps():
    rows = one([3.0, 2.0, 1.0])
    rows[1]["held_out/mse"] = 0.5
    line = plotting.curve(rows).axes[1].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [2])


def test_comparison_tells_learners_apart_without_colour():
    curves = {f"learner {i}": one([i + 1.0, i + 2.0], "held_out/mse") for i in range(20)}
    figure = plotting.comparison(curves, "mse", baselines=LEVELS)
    (ax,) = figure.axes
    lines = ax.lines[:20]
    np.testing.assert_array_equal(lines[3].get_ydata(), [4, 5])
    assert len({(line.get_marker(), str(line._unscaled_dash_pattern)) for line in lines}) == 20
    assert labels(figure) == [f"learner {i}" for i in reversed(range(20))]  # as the lines end
    assert texts(ax) == ["persistence", "taps"]
    assert ax.get_ylabel() == "held-out mse\n(squared units of the data)"


def test_comparison_takes_any_number_in_the_rows_as_x():
    near = one([1.0, 2.0], samples=100)
    far = one([1.0, 2.0], samples=5000)
    ax = plotting.comparison({"a": near, "b": far}, "loss", "samples").axes[0]
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "samples drawn"
    ax = plotting.comparison({"a": near}, "loss", "seconds").axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 0.25])
    assert ax.get_xscale() == "linear"


def test_a_metric_is_held_out_where_it_can_be():
    (held_out,) = plotting.comparison({"a": ROWS}, "loss").axes
    (training,) = plotting.comparison({"a": ROWS}, "training/loss").axes
    (exact,) = plotting.comparison({"a": ROWS}, "held_out/loss").axes
    assert (
        held_out.get_ylabel() == exact.get_ylabel() == "held-out loss\n(squared error, scaled data)"
    )
    assert training.get_ylabel().startswith("loss")
    np.testing.assert_allclose(held_out.lines[0].get_ydata(), 3.0)


def aligned(cosine, ratio, references=("full", "k=1")):
    """Of two repeats and draws 1, 4, 16; each reference's numbers are those before it halved."""
    halves = 0.5 ** np.arange(len(references))
    cosine, ratio = (np.asarray(a)[..., None] * halves for a in (cosine, ratio))
    return Alignment(cosine, ratio, {}, (1, 4, 16), references)


ALIGNED = {
    "np": aligned([[0.1, 0.4, 0.8], [0.3, 0.6, 0.8]], [[12.0, 4, 2], [8, 2, 1]]),
    "anp": aligned([[0.2, 0.5, 0.7], [0.4, 0.5, NAN]], [[2.0, 1, 1], [2, 1, NAN]]),
}


def test_alignment_draws_cosines_beside_norm_ratios():
    figure = plotting.alignment(ALIGNED, title="a title")
    cosine, ratio = figure.axes
    lines = cosine.lines[0], cosine.lines[1]
    np.testing.assert_array_equal(lines[0].get_xdata(), [1, 4, 16])
    np.testing.assert_allclose(lines[0].get_ydata(), [0.2, 0.5, 0.8])
    np.testing.assert_allclose(lines[1].get_ydata(), [0.3, 0.5, 0.7])  # NaN is left out
    np.testing.assert_allclose(ratio.lines[0].get_ydata(), [10, 3, 1.5])
    band = cosine.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.1, 0.8)
    for ax in figure.axes:
        assert [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 2] == [[1, 1]]
        assert ax.get_xscale() == "log"
    assert ratio.get_yscale() == "log"
    assert cosine.get_ylabel() == "cosine with the full gradient"
    assert ratio.get_ylabel() == "norm over that of the full gradient"
    expected = ["np", "anp", "line: mean of 2 repeats; band: lowest to highest"]
    assert labels(figure) == [*expected, "not finite, left out"]
    assert_nothing_overlaps(figure)


def test_alignment_has_a_line_for_each_reference():
    figure = plotting.alignment(ALIGNED, references=("full", "k=1"))
    assert labels(figure)[:4] == ["np, full", "np, k=1", "anp, full", "anp, k=1"]
    cosine, _ = figure.axes
    np.testing.assert_allclose(cosine.lines[1].get_ydata(), [0.1, 0.25, 0.4])
    assert len({(x.get_marker(), str(x._unscaled_dash_pattern)) for x in cosine.lines[:4]}) == 4
    assert_nothing_overlaps(figure)


def test_alignment_of_many_numbers_of_draws_writes_few_of_them():
    draws = tuple(range(1, 1025, 32))
    cosine = np.linspace(0.1, 1, len(draws))[None, :, None]
    figure = plotting.alignment({"np": Alignment(cosine, cosine, {}, draws, ("full",))})
    assert labels(figure) == ["np"]
    assert_nothing_overlaps(figure)
    one = Alignment(cosine[:, :1], cosine[:, :1], {}, (1,), ("full",))
    assert_nothing_overlaps(plotting.alignment({"np": one}))


def test_weights_have_a_panel_for_each_leaf():
    params = {
        "hidden": [{"bias": jnp.zeros(3)}],
        "kernel": jnp.array([[1.0, 2.0], [NAN, 5.0]]),
        "key": jax.random.key(0),
        "none": jnp.zeros((0, 2)),
    }
    figure = plotting.weights(params)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["hidden/0/bias", "kernel", "none"]
    assert texts(figure.axes[0]) == ["[3]\nall 0"]
    assert texts(figure.axes[1]) == ["[2, 2]\nmean 2.7\nsd 1.7\n1 not finite"]
    assert texts(figure.axes[2]) == ["[0, 2]\nno finite value"]
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 3
    assert len(plotting.weights(jnp.ones(4)).axes) == 1


def series_problem(num_outputs=1, scale=3.0):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 2, 1))
    targets = rng.normal(size=(40, 2, num_outputs))
    task = tasks.stream(inputs, targets, test=(inputs[:20], targets[:20]), num_skipped=5)
    task = dataclasses.replace(task, scale=scale)
    return Problem(task, recurrent((1,), num_outputs, hidden_sizes=(3,), cell="rnn"))


def test_forecast_is_in_the_units_of_the_data():
    problem = series_problem()
    params = problem.init(jax.random.key(0))
    figure = plotting.forecast(problem, params, num_steps=10, series=1)
    ax, error = figure.axes
    truth, forecast = (line.get_ydata() for line in ax.lines)
    expected = 3 * np.asarray(problem.task.test_targets)[5:15, 1, 0]
    np.testing.assert_allclose(truth, expected, rtol=1e-6)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(5, 15))
    batch = problem.held_out().sample(jax.random.key(0), 0)
    outputs = np.asarray(problem.outputs(params, batch))[5:15, 1, 0]
    np.testing.assert_allclose(forecast, 3 * outputs, rtol=1e-5)
    np.testing.assert_allclose(error.lines[0].get_ydata(), forecast - truth)
    mse = np.mean((forecast - truth) ** 2)
    assert ax.get_title(loc="left") == (f"held-out series 1: mse {mse:.3g} over the 10 steps shown")
    whole = plotting.forecast(problem, params).axes[0].lines[0]
    assert len(whole.get_xdata()) == 15  # what there is


def test_forecast_of_many_outputs_says_which_are_shown():
    problem = series_problem(6)
    figure = plotting.forecast(problem, problem.init(jax.random.key(0)))
    assert len(figure.axes) == 5
    assert figure.axes[-1].get_title(loc="right") == "outputs 0 to 3 of 6"
    assert_nothing_overlaps(figure)


def classes_problem(num_classes=3):
    labels = np.arange(12) % num_classes
    inputs = np.eye(num_classes)[labels]
    return Problem(
        tasks.examples(inputs, labels, test=(inputs, labels)),
        mlp((num_classes,), num_classes, hidden_sizes=()),
    )


def test_confusion_counts_answers_by_true_class():
    problem = classes_problem()
    params = jax.tree.map(jnp.zeros_like, problem.init(jax.random.key(0)))
    kernel = jnp.array([[1.0, 0, 0], [0, 0, 1], [0, 0, 1]])  # 1 is taken for 2
    params = jax.tree.map(lambda p: kernel if p.ndim == 2 else p, params)
    ax = plotting.confusion(problem, params).axes[0]
    written = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in ax.texts}
    assert written == {(0, 0): "4", (1, 2): "4", (2, 2): "4"}
    assert ax.get_title() == "accuracy 66.7 % of 12 held-out examples"
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1, 0, 0], [0, 0, 1], [0, 0, 1]])

    broken = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    ax = plotting.confusion(problem, broken).axes[0]
    assert not ax.texts
    assert ax.get_title().startswith("accuracy 0.0 % of 12 held-out examples\n12 without an answer")


def test_confusion_leaves_out_steps_that_do_not_count():
    labels = np.array([0, 1, 1, 0])
    inputs = np.zeros((4, 5, 1))
    task = tasks.sequences(inputs, labels, test=(inputs, labels))
    problem = Problem(task, recurrent((1,), 2, hidden_sizes=(2,), cell="rnn"))
    ax = plotting.confusion(problem, problem.init(jax.random.key(0))).axes[0]
    assert "% of 4 held-out" in ax.get_title()


@pytest.mark.parametrize("num_learners", [1, 3, 8])
def test_no_text_overlaps(num_learners):
    rows = [
        {
            name: value if name in ("step", "seconds") else [v * 1e-3 for v in value]
            for name, value in row.items()
        }
        for row in ROWS
    ]
    names = ["anp", "safe-mutation-rescale", "evosax:Sep_CMA_ES with a name that is too long"]
    curves = {f"{names[i % 3]} {i}": rows for i in range(num_learners)}
    assert_nothing_overlaps(plotting.comparison(curves, "mse", "seconds", LEVELS, "a title"))
    assert_nothing_overlaps(plotting.curve(rows, LEVELS, "a title"))


def test_no_text_of_weights_overlaps():
    params = {
        "a_very_long_path_of_a_module": {
            f"and_of_its_kernel_{i}": jnp.arange(9.0) - 4e3 for i in range(4)
        }
    }
    assert_nothing_overlaps(plotting.weights(params, "a title"))


def test_a_name_with_dollars_is_no_mathematics():
    figure = plotting.comparison({"$a$ of $": ROWS}, "mse", title="costs $")
    figure.draw_without_rendering()
    assert labels(figure)[0] == r"\$a\$ of \$"


def test_save_makes_folders_and_writes_the_format_of_the_ending(tmp_path):
    figure = plotting.curve(ROWS)
    path = plotting.save(figure, tmp_path / "new" / "curve.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plotting.save(figure, str(tmp_path / "curve.svg")).read_text().startswith("<?xml")
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    with pytest.raises(ValueError, match=r"path must end in one of .*png.*, got .*curve\.xyz"):
        plotting.save(figure, tmp_path / "curve.xyz")


def test_pictures_leave_pyplot_alone(tmp_path):
    code = (
        "import sys\n"
        "from jaxevo import plotting\n"
        "rows = [{'step': 1, 'seconds': 0.1, 'loss': 2.0}]\n"
        f"plotting.save(plotting.curve(rows), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_may_draw_at_once(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    threads = [
        threading.Thread(target=lambda p=p: plotting.save(plotting.curve(ROWS, LEVELS), p))
        for p in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in paths}) == 1


def mlp_params(num=None):
    problem = classes_problem()
    params = problem.init(jax.random.key(0))
    return params if num is None else jax.tree.map(lambda p: jnp.stack([p] * num), params)


def regression():
    return Problem(tasks.sine(num_points=8), mlp((1,), 1, hidden_sizes=(4,)))


def without_held_out():
    inputs, targets = np.zeros((9, 1, 1)), np.zeros((9, 1, 1))
    return Problem(tasks.stream(inputs, targets, test=0.0), series_problem().model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.curve([]), "rows must hold at least one record, got none"),
        (lambda: plotting.curve([{"loss": 1.0}]), "rows must have a step in every row, got loss"),
        (lambda: plotting.curve(ROWS, metric="mze"), r"got 'mze' \(did you mean mse\?\)"),
        (
            lambda: plotting.curve(one([1.0], "reward")),
            "metric must be named where rows have no loss, one of reward",
        ),
        (
            lambda: plotting.curve(one([[[1.0], [2.0]]])),
            "loss must be a number, or one per seed, in every row, got",
        ),
        (lambda: plotting.curve(one(["much"])), "loss must be a number, .* got 'much'"),
        (lambda: plotting.comparison({}, "mse"), "curves must hold the rows of at least one"),
        (
            lambda: plotting.comparison({"a": ROWS, "b": []}, "mse"),
            r"curves\['b'\] must hold at least one record",
        ),
        (
            lambda: plotting.comparison({"a": ROWS, "b": one([1.0])}, "mse"),
            r"metric must be one of those of curves\['b'\], loss, got 'mse'",
        ),
        (
            lambda: plotting.comparison({"a": ROWS}, "mse", "second"),
            r"curves\['a'\] has a row without 'second' \(did you mean seconds\?\)",
        ),
        (lambda: plotting.alignment({}), "results and references must hold at least one"),
        (
            lambda: plotting.alignment(ALIGNED, references=("k=2",)),
            r"references must be among those of results\['np'\], full, k=1, got 'k=2' \(did you",
        ),
        (lambda: plotting.weights({}), "params must hold at least one array of numbers"),
        (
            lambda: plotting.forecast(regression(), {}),
            "problem must be a sequence problem on a tasks.Stream.*got a Supervised of Examples",
        ),
        (
            lambda: plotting.forecast(without_held_out(), {}),
            "problem must have held-out series, and its task has none",
        ),
        (
            lambda: plotting.forecast(
                series_problem(), series_problem().init(jax.random.key(0)), series=2
            ),
            "series must be from 0 to 1, got 2",
        ),
        (
            lambda: plotting.forecast(
                series_problem(), series_problem().init(jax.random.key(0)), num_steps=0
            ),
            "num_steps must be >= 1, got 0",
        ),
        (lambda: plotting.confusion(regression(), {}), "problem must have integer labels"),
        (lambda: plotting.confusion(without_held_out(), {}), "problem must have a held-out split"),
        (
            lambda: plotting.confusion(classes_problem(), mlp_params(num=3)),
            "params must be one network, got 3 of them",
        ),
    ],
)
def test_bad_input_meets_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
