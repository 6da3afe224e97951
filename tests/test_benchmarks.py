"""The benchmarks run, without what only the command line and the tests need, and add up."""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
VARIANTS = {
    "bench_noise": {
        "copy",
        "normal, mix",
        "normal, threefry",
        "rademacher, mix",
        "rademacher, threefry",
    },
    "bench_dispatch": {
        "whole scan",
        "chunks of 50",
        "chunks of 50 with log",
        "Python loop",
        "Python loop, float(loss)",
        "Python loop, unjitted",
    },
    "bench_pathnet": {f"{form}, M={m}" for form in ("gathered", "masked") for m in (10, 20, 40)},
    "bench_recurrent": {
        "forward",
        "BPTT",
        "BPTT, checkpointed",
        "ANP, store",
        "ANP, two_pass",
        "ANP, per_sequence",
    },
    "bench_sensitivity": {
        "forward",
        "SUM",
        "ABS",
        "SO",
        "ABS, jacrev",
        "ABS, jacrev, scanned",
    },
    "bench_convolution": {
        f"{variant}{name}"
        for name in ("", ", XLA's convolution")
        for variant in (
            "back-propagation by itself",
            "back-propagation in a loop",
            "evolution strategy, N = 64",
            "forward",
            "SUM",
            "ABS",
        )
    },
    "bench_rollout": {
        f"{policy}{name}" for policy in ("fresh", "never falling") for name in ("", ", all steps")
    },
    "bench_metropolis": {
        "floor",
        "forward, members first",
        "tanh alone",
        "unit by unit",
        "unit by unit, beta 1000",
        "unit by unit, threefry",
        "adaptive, unit by unit",
        "matrix products",
    },
    "bench_population": {
        "floor, blocked",
        "floor, unblocked",
        "SGD value_and_grad",
        "full rank, mix, ranks",
        "full rank, mix, standardized",
        "full rank, threefry, ranks",
        "low rank, r=1, rademacher, standardized",
        "low rank, r=1, rademacher, ranks",
        "low rank, r=1, gaussian, ranks",
        "low rank, r=4, rademacher, ranks",
    },
}
RECURRENT_POPULATION = {
    "floor: one network, N sequences",
    "own weights",
    "low rank, r=1",
    "low rank, r=4",
}


def run(tmp_path, *command):
    file = tmp_path / "rows.json"
    environment = os.environ | {"PYTHONPATH": f"{BENCHMARKS.parent}{os.pathsep}{BENCHMARKS}"}
    environment["JAX_PLATFORMS"] = "cpu"
    options = ["--quick", "--rounds", "1", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, *command, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def check(stdout, blocks, variants):
    block = blocks[0]
    assert {"jax", "device", "precision", "D", "N", "B", "T", "seed", "clock", "load"} <= set(
        block["settings"]
    )
    rows = {row["variant"]: row for row in block["rows"]}
    assert set(rows) == variants
    base, *_ = rows.values()
    ratio = next(name for name in base if name.startswith("x "))
    assert base[ratio] == 1
    for name, row in rows.items():
        cost = row[list(row)[1]]  # of a generation or a number, behind the name
        # of one round, the ratio of the times is the median of the ratios
        assert row[ratio] == pytest.approx(cost / base[list(base)[1]])
        assert f"| {name} " in stdout


def without_optional_packages(benchmark):
    names = ("evosax", "tyro", "pooch", "gymnax", "beartype", "safetensors")
    return (
        "import runpy, sys\n"
        f"for name in {names}: sys.modules[name] = None\n"
        f"runpy.run_module({benchmark!r}, run_name='__main__')"
    )


@pytest.mark.e2e
def test_noise_benchmark(tmp_path):
    stdout, blocks = run(tmp_path, str(BENCHMARKS / "bench_noise.py"))
    check(stdout, blocks, VARIANTS["bench_noise"])
    assert {row["variant"]: row["temp MB"] for row in blocks[0]["rows"]}["normal, mix"] == 0


@pytest.mark.slow
def test_dispatch_benchmark(tmp_path):
    stdout, blocks = run(tmp_path, str(BENCHMARKS / "bench_dispatch.py"))
    check(stdout, blocks, VARIANTS["bench_dispatch"])
    assert [row["generations of one scan"] for row in blocks[1]["rows"]] == [10, 1000, 100_000]


@pytest.mark.slow
def test_metropolis_benchmark(tmp_path):
    stdout, blocks = run(tmp_path, "-c", without_optional_packages("bench_metropolis"))
    check(stdout, blocks, VARIANTS["bench_metropolis"])
    short, *_, long = blocks[1]["rows"]
    more = long["attempts"] - short["attempts"]
    # flat, but for the four bytes of each attempt's number in the scan of `train`
    assert 1e6 * (long["temp MB"] - short["temp MB"]) <= 4 * more + 256


def script(monkeypatch, name):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_correspondence_script(monkeypatch, tmp_path, capsys):
    """At full size: what the README says of it."""
    found = script(monkeypatch, "correspondence").main(["--picture", str(tmp_path / "a.png")])
    (_, large), (_, one), (_, half) = found["cold"].items()
    assert abs(one.agreement.loss_gap[-1]) < 0.02 and one.agreement.correlation[-1] > 0.999
    assert half.agreement.delta[-1] < one.agreement.delta[-1] < large.agreement.delta[-1] / 10
    assert large.trajectory.acceptance[-1] < 0.45 < 0.49 < one.trajectory.acceptance[-1]
    assert found["ratio"] > 5
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert "| 0.00025 |" in capsys.readouterr().out


@pytest.mark.slow
def test_correspondence_script_in_small(monkeypatch, capsys):
    arguments = ["--members", "20", "--points", "6", "--time", "0.1"]
    found = script(monkeypatch, "correspondence").main(arguments)
    assert len(found["cold"]) == 3 and found["warm"].agreement.delta.shape == (16,)
    assert "| n | 1 | 2 | 4 | 8 | 16 |" in capsys.readouterr().out


@pytest.mark.slow
def test_adaptive_script(monkeypatch, tmp_path, capsys):
    """The drift is worth a factor of five on both curves."""
    arguments = ["--tasks", "curves", "digits", "--seconds", "9"]
    picture = ["--picture", str(tmp_path / "a.png")]
    found = script(monkeypatch, "adaptive_monte_carlo").main(arguments + picture)
    assert min(found["ratios"].values()) > 5
    table = {row["learner"]: row["mean"] for row in found["comparisons"]["digits"].table}
    assert table["adaptive Monte Carlo"] > 0.8 and table["Adam"] > 0.9
    assert (tmp_path / "a.png").exists()


@pytest.mark.slow
def test_recurrent_benchmark_without_optional_packages(tmp_path):
    stdout, blocks = run(tmp_path, "-c", without_optional_packages("bench_recurrent"))
    population, *blocks = blocks
    check(stdout, [population], RECURRENT_POPULATION)
    variants = VARIANTS["bench_recurrent"]
    for block, length in zip(blocks[:2], (50, 200), strict=True):
        check(stdout, [block], variants)
        assert block["settings"]["T"] == length
    _, long, memory, one = ({row["variant"]: row for row in b["rows"]} for b in blocks)
    assert set(memory) == variants
    for name, row in memory.items():
        slope = (long[name]["temp MB"] - row["MB, T=50"]) / 150 * 1e3
        assert row["kB/step"] == pytest.approx(slope, abs=1e-9)
    for name in ("ANP, two_pass", "ANP, per_sequence"):
        assert memory[name]["T=200 / T=50"] == pytest.approx(1, abs=0.01)
    assert memory["BPTT"]["T=200 / T=50"] > 3 > memory["BPTT, checkpointed"]["T=200 / T=50"]
    assert one["ANP, two_pass"]["temp MB"] < one["BPTT"]["temp MB"] / 10


@pytest.mark.slow
def test_sensitivity_benchmark_without_optional_packages(tmp_path):
    stdout, blocks = run(tmp_path, "-c", without_optional_packages("bench_sensitivity"))
    assert len(blocks) == 2  # a dense and a convolutional network
    for block, most in zip(blocks, (0.1, 2), strict=True):
        check(stdout, [block], VARIANTS["bench_sensitivity"])
        rows = {row["variant"]: row for row in block["rows"]}
        assert rows["ABS"]["differs"] < 1e-5
        for name in ("SUM", "ABS", "SO"):
            assert rows[name]["temp / experiences x weights"] < most


@pytest.mark.slow
@pytest.mark.parametrize("study", ["toy", "parity", "maze", "deep", "pole"])
def test_studies_of_safe_mutation(study):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "safe_mutation_domains.py", study, "--quick", "--runs", "2"],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_population_benchmark(tmp_path):
    stdout, blocks = run(tmp_path, str(BENCHMARKS / "bench_population.py"))
    peers = {"evosax Open_ES", "evosax SNES"} if importlib.util.find_spec("evosax") else set()
    check(stdout, blocks, VARIANTS["bench_population"] | peers)


@pytest.mark.slow
def test_population_benchmark_without_optional_packages(tmp_path):
    stdout, blocks = run(tmp_path, "-c", without_optional_packages("bench_population"))
    assert "evosax is not installed: its variants are skipped" in stdout
    check(stdout, blocks, VARIANTS["bench_population"])
    assert all(row["Open_ES / this"] is None for row in blocks[0]["rows"])


LEARNING = {
    "digits": {"full rank", "low rank, r=1", "backprop", "np"},
    "cartpole-masked": {"control", "safe-mutation-sum", "low rank, r=1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("task", LEARNING)
def test_learning_benchmark(tmp_path, task):
    """Red where a variant fails, or does not get to the target that a first look needs."""
    script = str(BENCHMARKS / "bench_learning.py")
    stdout, (block,) = run(tmp_path, script, "--tasks", task)
    evosax = {"evosax SNES"} if importlib.util.find_spec("evosax") else set()
    check(stdout, [block], LEARNING[task] | evosax)
    for row in block["rows"]:
        assert row["forward passes"] >= row["evaluations"] - 16 > 0
    if task == "digits":
        for row in block["rows"]:
            assert row["held-out loss"] <= 0.4
            assert (row["backward passes"] > 0) == (row["variant"] == "backprop")


@pytest.mark.slow
def test_a_library_of_another_environment_learns_on_the_same_data(tmp_path):
    """Red where the request lacks something; this interpreter stands for one that has torch."""
    pytest.importorskip("torch")
    script = str(BENCHMARKS / "bench_learning.py")
    peer = f"torch={sys.executable}"
    _, (block,) = run(tmp_path, script, "--tasks", "digits", "--peer", peer)
    (row,) = (row for row in block["rows"] if row["variant"].startswith("torch"))
    assert row["held-out loss"] <= 0.4 and row["backward passes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench_pathnet", "bench_convolution", "bench_rollout"])
def test_benchmark(tmp_path, name):
    stdout, blocks = run(tmp_path, str(BENCHMARKS / f"{name}.py"))
    check(stdout, blocks, VARIANTS[name])


@pytest.fixture
def timing(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import timing

    return timing


def test_a_ratio_is_the_median_over_rounds_of_the_ratio_within_a_round(timing):
    slow = timing.Timing(None, [2.0, 30.0, 6.0], None)
    fast = timing.Timing(None, [1.0, 10.0, 1.0], None)
    assert timing.ratio(slow, fast) == 3  # of 2, 3 and 6; the ratio of the medians is 6


def test_rounds_take_turns_and_a_call_before_each_timed_one_does_not_count(timing, monkeypatch):
    calls, now = [], iter(range(100))
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: next(now))
    programs = [timing.Program(name, lambda n=name: calls.append(n), 2) for name in "ab"]
    timings = timing.measure(programs, argparse.Namespace(clock="wall", rounds=3))
    assert "".join(calls) == "ab" + "aabb" * 3
    assert [t.seconds for t in timings] == [[0.5] * 3] * 2


@pytest.fixture
def together(monkeypatch):
    """The command that runs all scripts."""
    return script(monkeypatch, "__main__").main


STUB = """
import json, sys
assert "--quick" in sys.argv
settings = {"device": "cpu", "N": 2, "load": 0.5}
print("device cpu  N 2")
rows = [{"variant": "floor", "x floor": 1.0}, {"variant": "ours", "x floor": 2.0}]
json.dump([{"settings": settings, "rows": rows}], open(sys.argv[-1], "w"))
"""


def test_all_scripts_run_and_one_that_fails_is_not_passed_over(together, tmp_path, capfd):
    (tmp_path / "bench_a.py").write_text("raise SystemExit(3)")
    (tmp_path / "bench_b.py").write_text(STUB)
    (tmp_path / "study.py").write_text("raise SystemExit('not a benchmark')")
    file = tmp_path / "all.json"
    assert together(["--quick", "--json", str(file)], tmp_path) == 1
    found = json.loads(file.read_text())
    assert list(found) == ["bench_a", "bench_b"] and found["bench_a"]["blocks"] == []
    assert found["bench_b"]["blocks"][0]["rows"][1] == {"variant": "ours", "x floor": 2.0}
    text = file.with_suffix(".md").read_text()
    assert "### `python benchmarks/bench_b.py --quick`" in text and "device cpu  N 2" in text
    assert "failed, exit status 3" in text
    (tmp_path / "bench_a.py").unlink()
    assert together(["--quick", "--json", str(file)], tmp_path) == 0


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"ours": 2.9}, 0, "| 1.45 | 2 | 2.9 | bench | N 2  device cpu | ours | x floor |"),
        ({"ours": 3.1}, 1, "1 of 3 ratios grew more than 1.5 times"),
        ({"ours": float("nan")}, 1, "| nan | 2 | nan |"),
        ({"ours": None}, 1, "| - | 2 | - |"),  # not measured any more: not a pass
        ({"third": 9.0}, 0, "| - | - | 9 |"),  # measured for the first time
        ({"N": 3}, 1, "nothing to compare"),  # another size is another benchmark
        ({"load": 7}, 0, "| 1 | 2 | 2 |"),
    ],
)
def test_a_slowdown_shows_between_two_runs(together, tmp_path, capsys, changes, status, said):
    files = []
    for name, changed in (("old", {}), ("new", changes)):
        settings = {"N": 2, "device": "cpu", "load": 1} | changed
        values = {"floor": 1.0, "ours": 2.0, "peer": 4.0} | changed
        rows = [
            {"variant": variant, "ms": 1.0, "x floor": values[variant]}
            for variant in ("floor", "ours", "peer", "third")
            if variant in values
        ]
        kept = {name: settings[name] for name in ("N", "device", "load")}
        files.append(tmp_path / f"{name}.json")
        found = {"bench": {"seconds": 1, "blocks": [{"settings": kept, "rows": rows}]}}
        files[-1].write_text(json.dumps(found))
    assert together(["--compare", *map(str, files)]) == status
    out = capsys.readouterr().out
    assert said in out
    assert "nothing" in said or out.index("| ours |") < out.index("| peer |")


def test_an_option_beside_compare_is_refused(together, tmp_path, capsys):
    with pytest.raises(SystemExit):
        together(["--compare", "a", "b", "--quick"])
    assert "takes no other options, got --quick" in capsys.readouterr().err


def test_a_table_of_reproductions_goes_on_where_it_was(tmp_path):
    """Red if a row is measured twice, a failure hides, or a row without a reason is not run."""
    root = str(BENCHMARKS.parent)
    sys.path.insert(0, root)
    try:
        from benchmarks.reproductions.__main__ import ROWS, main
        from benchmarks.reproductions.rows import Outcome, Row, median_text, verdict_of
    finally:
        sys.path.remove(root)
    calls = []

    def measure(args):
        calls.append(args.quick)
        if len(calls) == 1:
            raise RuntimeError("broken off")
        return Outcome("small", 3, "0.5 [0.4, 0.6]", verdict_of(False, True), "a rule")

    rows = (
        Row("one", "A paper", "Fig. 1", "0.5", measure),
        Row("two", "A paper", "Fig. 2", "1", reason="it takes days"),
    )
    page = tmp_path / "page.md"
    words = ["--quick", "--out", str(tmp_path / "out"), "--page", str(page)]
    assert main(words, rows) == 1
    assert "2 not run" in page.read_text()
    assert main(words, rows) == 0 and main(words, rows) == 0
    assert calls == [True, True]
    text = page.read_text()
    assert "1 in direction, 1 not run" in text and "**in direction**: a rule" in text
    assert "it takes days" in text
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.measure is not None or row.reason for row in ROWS)
    assert median_text([1.0, 1.0, 1.0]) == "1 [1, 1]"
