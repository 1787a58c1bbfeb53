"""Opens reports and MLflow's interface in a real headless Chromium, as a person would: `make browser`.

    python tests/browser.py [--out DIR] [REPORT.html ...]

Without reports: those in the home's folder `charts` (`make demo` writes one). Of a report every chart must be drawn,
with marks counted; of both no error may stand in the console, and no request may be for another machine. Screenshots
(and each report as it is printed) are left in DIR, to be looked at. Chromium is spoken to through a pipe (DevTools
protocol), so that nothing but Chromium has to be installed. Not collected by pytest; exit code 1 with a line for each
thing that is wrong.
"""

from __future__ import annotations

# ruff: noqa: T201 - it is a script that prints
import argparse
import base64
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vkvdb.paths import Home, find_home

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1200
PATIENCE = 120.0  # seconds until a page must be ready, on a machine that does other things too

# MLflow asks its own server who is logged in, and one without log-in answers 404.
NO_LOGIN = "/ajax-api/2.0/mlflow/users/current"

# Marks of data, not axes and legends.
CHARTS = """[...document.querySelectorAll(".chart")].map((chart) => ({
  name: chart.closest("figure").id,
  svgs: chart.querySelectorAll("svg.marks").length,
  marks: chart.querySelectorAll("[class*='role-mark'] :is(path, line, text, rect, image)").length,
  width: chart.scrollWidth - chart.clientWidth,
}))"""


class Chromium:
    """A headless Chromium that resolves no name but this machine's; `events` are what it told, by session."""

    def __init__(self, program: str, profile: Path) -> None:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()

        def place() -> None:  # Chromium reads from 3 and writes to 4
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_child, from_child)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-gpu"]
        flags += [
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
        ]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [program, *flags],
            close_fds=False,
            preexec_fn=place,  # noqa: PLW1509 - there is one thread
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_child)
        os.close(from_child)
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask for something, and wait for what comes back; events in between are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            got = os.read(self._read, 1 << 16)
            if not got:
                raise RuntimeError("Chromium ended")
            self._rest += got
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def end(self) -> None:
        """End it and its children."""
        os.close(self._write)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Tab:
    """A tab of a window as wide as a laptop's."""

    def __init__(self, chromium: Chromium) -> None:
        self.chromium = chromium
        target = chromium.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = chromium.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=900, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.chromium.call(method, self.session, **parameters)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is worth."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(got["exceptionDetails"]["exception"].get("description", expression))
        return got["result"].get("value")

    def open(self, url: str, ready: str) -> bool:
        """Go there; whether the expression came true in time."""
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.value("document.readyState === 'complete'") and self.value(ready):
                return True
            time.sleep(0.3)
        return False

    def wrong(self, *, local: Callable[[str], bool]) -> list[str]:
        """Errors in the console, and requests for another machine, since the last time."""
        told = []
        for event in self.chromium.events:
            method, about = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent" and not local(about["request"]["url"]):
                told.append(f"asked another machine: {about['request']['url'][:200]}")
            elif method == "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                told.append(f"exception: {details.get('exception', {}).get('description', details['text'])[:300]}")
            elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
                words = [str(a.get("value", a.get("description", ""))) for a in about["args"]]
                told.append(f"console: {' '.join(words)[:300]}")
            elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
                entry = about["entry"]
                told.append(f"console: {entry['text'][:300]} {entry.get('url', '')[:200]}")
        self.chromium.events.clear()
        return told

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as a PNG; `whole` from its top to its end, as far as a picture can be tall."""
        options: dict[str, Any] = {"format": "png"}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(size["height"], 16000), "scale": 1}
            options |= {"captureBeyondViewport": True, "clip": clip}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

    def print(self, path: Path) -> None:
        """The page as it is printed."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))


def of_report(tab: Tab, path: Path, out: Path) -> list[str]:
    """What is wrong with a report: charts not drawn, errors, requests."""
    expected = path.read_text(encoding="utf-8").count('<div class="chart">')
    ready = tab.open(path.resolve().as_uri(), f"document.documentElement.dataset.drawn || {expected} === 0")
    charts = tab.value(CHARTS)
    told = [] if ready else [f"charts were not drawn within {PATIENCE:.0f} s"]
    if len(charts) != expected:
        told.append(f"{len(charts)} charts, expected {expected}")
    told += [
        f"{c['name']}: not drawn ({c['svgs']} pictures, {c['marks']} marks)"
        for c in charts
        if c["svgs"] != 1 or not c["marks"]
    ]
    broken = tab.value("[...document.images].filter((i) => !i.naturalWidth).length")
    told += [f"{broken} pictures are broken"] if broken else []
    page = path.resolve().as_uri()
    told += tab.wrong(local=lambda url: url == page or url.startswith(("data:", "blob:")))
    tab.screenshot(out / f"{path.stem}.png")
    tab.print(out / f"{path.stem}.pdf")
    pictures = tab.value("document.images.length")
    marks = ", ".join(f"{c['name']} {c['marks']} marks" for c in charts)
    print(f"{path.name}: {marks}; {pictures} pictures")
    return told


@contextmanager
def interface(home: Home) -> Iterator[str]:
    """MLflow's interface, as `vkvdb ui` starts it; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A background process is born deaf to Ctrl-C.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += f"; from vkvdb_cli.main import main; sys.exit(main(['ui', '--port', '{port}']))"
    environment = {**os.environ, "VKVDB_HOME": str(home.root)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.5)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def asked(address: str, method: str, **body: Any) -> Any:
    """MLflow's REST interface."""
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{method}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def of_interface(tab: Tab, home: Home, out: Path) -> list[str]:
    """What is wrong with MLflow's interface: names missing, errors, requests."""
    told = []
    with interface(home) as address:
        local = ("about:", "data:", "blob:", address)
        experiments = asked(address, "experiments/search", max_results=100).get("experiments", [])
        runs = [
            run
            for e in experiments
            for run in asked(address, "runs/search", experiment_ids=[e["experiment_id"]], max_results=100).get(
                "runs", []
            )
        ]
        if not runs:
            return [f"{home.root} has no runs; type: vkvdb sync"]
        pages = {"mlflow-experiments": ("/#/experiments", [e["name"] for e in experiments if e["name"] != "Default"])}
        first = next(r["info"] for r in runs if not r["info"]["run_name"].startswith("report"))
        pages["mlflow-runs"] = (f"/#/experiments/{first['experiment_id']}/runs", [first["run_name"]])
        pages["mlflow-chart"] = (
            f"/#/experiments/{first['experiment_id']}/runs/{first['run_id']}/model-metrics",
            [first["run_name"]],
        )
        for run in (r["info"] for r in runs if r["info"]["run_name"].startswith("report")):
            pages["mlflow-report"] = (
                f"/#/experiments/{run['experiment_id']}/runs/{run['run_id']}/artifacts/report.html", [run["run_name"]]
            )  # fmt: skip
        for name, (place, words) in pages.items():
            there = f"{json.dumps(words)}.every((word) => document.body.innerText.includes(word))"
            tab.open("about:blank", "true")
            if not tab.open(address + place, there):
                told.append(f"{name}: {', '.join(words)} not found within {PATIENCE:.0f} s")
            time.sleep(3)  # what is drawn after the words
            tab.screenshot(out / f"{name}.png", whole=False)
            lines = tab.wrong(local=lambda url: url.startswith(local))
            told += [f"{name}: {line}" for line in lines if NO_LOGIN not in line]
            drawn = tab.value("document.querySelectorAll('svg.main-svg, canvas').length")
            print(f"{name}: {drawn} charts")
            told += [f"{name}: no chart is drawn"] if name == "mlflow-chart" and not drawn else []
    return told


def main() -> int:
    """Look at everything; 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reports", nargs="*", type=Path, metavar="REPORT.html")
    parser.add_argument("--out", type=Path, default=Path("build/browser"), metavar="DIR")
    given = parser.parse_args()
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        print("no Chromium: install the package chromium (Debian: apt install chromium)", file=sys.stderr)
        return 1
    home = find_home()
    reports = given.reports or sorted(home.charts.rglob("report*.html"))
    if not reports:
        print(f"no report in {home.charts}; type: make demo", file=sys.stderr)
        return 1
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = Chromium(program, Path(profile))
        try:
            tab = Tab(chromium)
            told = [f"{path.name}: {line}" for path in reports for line in of_report(tab, path, given.out)]
            told += of_interface(tab, home, given.out)
        finally:
            chromium.end()
    for line in told:
        print(re.sub(r"\s+", " ", line), file=sys.stderr)
    print(f"{len(told)} things are wrong" if told else f"nothing is wrong; look at {given.out}")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
