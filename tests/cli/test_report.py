"""`jaxevo report`: one HTML page of a run or a study, which needs nothing but a browser."""

import base64
import json
import re
import shutil
import subprocess

import jax
import pytest

from jaxevo import GradientLearner, Problem, models, tasks
from jaxevo.cli.main import main
from jaxevo.estimators import EvolutionStrategy
from jaxevo.training.driver import run

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two seeds, with a picture, as the command line would have left it."""
    path = tmp_path_factory.mktemp("report") / "<b>run"
    task = tasks.sine(num_points=8)
    learner = GradientLearner(estimator=EvolutionStrategy(population_size=4))
    problem = Problem(task, models.mlp((1,), 1, hidden_sizes=(2,)))
    run(jax.random.key(0), learner, problem, num_steps=6, num_seeds=2, folder=path, progress=False)
    config = json.loads((path / "config.json").read_text())
    config["settings"] = {"learner": "evolution-strategy", "task": "sine", "model": "mlp"}
    config["settings"] |= {"num_steps": 6, "sigma": 0.07, "population_size": 256}
    config["command"] = ["/bin/jaxevo", "train", "evolution-strategy", "sine", "--out", "x"]
    (path / "config.json").write_text(json.dumps(config))
    (path / "episode.png").write_bytes(PIXEL)
    return path


@pytest.fixture
def page(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_a_page_has_what_a_run_is(page):
    assert "evolution-strategy on sine" in page
    assert "held-out loss" in page and "parameters" in page
    assert '<th scope="row">sigma</th><td>0.07</td>' in page  # differs from its default
    assert "population_size</th>" not in page  # does not
    assert "jaxevo train evolution-strategy sine</pre>" in page  # --out is full by now
    assert base64.b64encode(PIXEL).decode() in page
    charts = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert [json.loads(chart)["title"] for chart in charts][:1] == ["loss"]


def test_a_page_asks_for_nothing_else(page):
    """Red where it links a file or a host, which a mail or an air-gapped machine has not."""
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_names_are_no_markup(folder, page, tmp_path, capsys):
    two = tmp_path / "two.html"
    assert main(["report", str(folder), str(folder), "--out", str(two)]) == 0
    assert "<b>run" not in two.read_text() and "&lt;b&gt;run" in two.read_text()


def test_a_run_that_is_not_done_says_so(folder, tmp_path, capsys):
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    (torn / "summary.json").unlink()
    assert main(["report", str(torn)]) == 0
    assert "not finished: jaxevo resume" in (torn / "report.html").read_text()


@pytest.mark.parametrize("text", ["{}", "[]", '{"cost_per_step": 3, "interrupted": 0}'])
def test_a_damaged_folder_is_one_line(text, folder, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "summary.json").write_text(text)
    assert main(["report", str(damaged)]) == 2
    assert re.fullmatch(r"jaxevo: .*damaged.*\n", capsys.readouterr().err)
    assert main(["report", str(tmp_path)]) == 2
    assert "folder must hold a run's config.json" in capsys.readouterr().err


@pytest.mark.e2e
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it_without_errors_or_overflow(width, page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    # A frame has the width that is asked for, which a window need not have.
    measure = (
        "<script>addEventListener('error', e => document.title += ' ERROR ' + e.message);"
        "setTimeout(() => document.title += ` ${document.documentElement.scrollWidth} "
        "${document.querySelectorAll('polyline').length}`, 500)</script>"
    )
    inner = tmp_path / "inner.html"
    inner.write_text(page.replace("<head>", "<head>" + measure), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>setTimeout(() => document.title = "
        "document.getElementById('f').contentDocument.title, 1500)</script>"
    )
    words = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    words += " --disable-component-update --disable-sync --allow-file-access-from-files"
    options = [*words.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [browser, *options, "--virtual-time-budget=4000", f"file://{frame}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title and "ERROR" not in title[1], done.stdout[-500:]
    scroll_width, lines = map(int, title[1].split()[-2:])
    assert scroll_width <= width and lines >= 2
