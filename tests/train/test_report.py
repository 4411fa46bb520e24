"""report.html stands alone, says what the run folder knows, and escapes what the model wrote."""

import re
from html.parser import HTMLParser

import pytest

from chogori.errors import RunError
from chogori.train.metrics import MetricsFile
from chogori.train.report import write_report
from chogori.train.run_folder import RunFolder
from tests.train.test_plots import plot_data


class Loads(HTMLParser):
    """Collects everything that would make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.found.append(value or "")


@pytest.fixture
def run(make_config, tmp_path) -> RunFolder:
    config = make_config(data_folder=None)
    folder = RunFolder(config.out)
    with folder.lock():
        folder.start(config)
    data = plot_data(12)
    with MetricsFile(folder.metrics_file, keep_steps=0) as file:
        for record in (*data.steps, *data.evaluations):
            file.append(record.to_record())
    return folder


def test_it_loads_nothing(run):
    run.write_json(run.samples_file, [{"prompt": "The ", "text": "end"}])
    page = write_report(run).read_text(encoding="utf-8")
    parser = Loads()
    parser.feed(page)
    # What is left are references inside the page and pictures that it carries.
    assert all(target.startswith(("#", "data:image/")) for target in parser.found)
    assert not parser.tags & {"script", "link", "iframe", "img", "object"}
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(['\"]?([^)'\"]+)", page))
    assert "@import" not in page


def test_it_shows_the_run(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("<svg") == 8
    for words in (
        "1.900",
        "bits per byte, held out",
        "12 steps, complete",
        "225 k",
        "20% of the matrix peak",
        "τ = 100",
    ):
        assert words in page, words
    assert "&quot;hidden_size&quot;: 64" in page
    assert (run.plots / "loss.png").is_file()


def test_text_of_the_model_is_not_markup(run):
    run.write_json(run.samples_file, [{"prompt": "<b>", "text": "</pre><script>alert(1)</script>"}])
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<b>&lt;b&gt;</b>&lt;/pre&gt;&lt;script&gt;" in page


def test_an_unfinished_run_has_a_report_too(make_config):
    config = make_config(data_folder=None)
    folder = RunFolder(config.out)
    with folder.lock():
        folder.start(config)
    assert "0 steps, not finished" in write_report(folder).read_text(encoding="utf-8")


def test_it_needs_a_run(tmp_path):
    with pytest.raises(RunError, match=r"is not the config|No such file|does not exist"):
        write_report(RunFolder.open(tmp_path / "none"))
