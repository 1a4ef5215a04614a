"""A real browser in front of a real JupyterLab, for tests: nothing of either leaves the loopback address."""

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

CHROMIUM = shutil.which("chromium")
AVAILABLE = CHROMIUM is not None and importlib.util.find_spec("playwright") is not None
_ARGUMENTS = [
    "--disable-gpu",
    "--no-proxy-server",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# what JupyterLab would ask at its first start, and cells that are drawn only when scrolled to
_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
# JavaScript, run in the page
_READY = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
_PANEL = "window.jupyterapp.shell.currentWidget"
_CODE_CELLS = f"Array.from({_PANEL}.content.model.cells).filter(cell => cell.type === 'code')"
_FINISHED = f"""() => {{
  const cells = {_CODE_CELLS};
  const failed = cells.some(cell => cell.outputs.toJSON().some(output => output.output_type === "error"));
  return {_READY} && (failed || cells.every(cell => cell.executionCount));
}}"""
DRAWN_PLOTS = f"""Array.from({_PANEL}.content.node.querySelectorAll(".jp-RenderedImage img")).filter(
  image => image.complete && image.naturalWidth > 0).length"""


@contextlib.contextmanager
def jupyter_lab(folder, root):
    """Start JupyterLab on a free port over `root`, with settings, data and runtime files of its own in `folder`.

    Yields the address, which holds the token.
    """
    config = folder / "config"
    (config / "labconfig").mkdir(parents=True)
    (config / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(_SETTINGS))
    token = secrets.token_hex(16)
    own = {
        "JUPYTER_CONFIG_DIR": config,
        "JUPYTER_DATA_DIR": folder / "data",
        "JUPYTER_RUNTIME_DIR": folder / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": folder / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
        "IPYTHONDIR": folder / "ipython",
        "KVLIB_PROGRESS": folder / "progress",
        "JUPYTER_TOKEN": token,  # not on the command line, where other users could read it
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", "--expose-app-in-browser"),
        *("--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
        *("--LabApp.extension_manager=readonly", *(["--allow-root"] if os.getuid() == 0 else [])),
    ]
    log = folder / "server.log"
    with log.open("w") as stream:
        environment = os.environ | {name: str(value) for name, value in own.items()}
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab", token
    finally:
        server.terminate()  # the server ends its kernels
        server.wait(timeout=60)


def _wait_for(address, server, log, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(address, timeout=10),
        ):
            return
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


@contextlib.contextmanager
def chromium():
    """Start Debian's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    arguments = [*_ARGUMENTS, *(["--no-sandbox"] if os.getuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, headless=True)
        yield browser
        browser.close()


def open_notebook(page, lab, name):
    """Open a notebook in a workspace of its own and wait for its kernel."""
    address, token = lab
    # JupyterLab takes no dot in a workspace's name
    page.goto(f"{address}/workspaces/{name.partition('.')[0]}/tree/{name}?token={token}")
    page.wait_for_function(_READY)
    page.cells = page.evaluate(f"{_PANEL}.content.model.cells.length")


def run_all(page, seconds=900):
    """Choose Run All Cells from the menu and wait until each cell has its number, or one has failed."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(_FINISHED, timeout=1000 * seconds, polling=500)


def outputs(page):
    """Read the outputs of each code cell from the page."""
    return page.evaluate(f"{_CODE_CELLS}.map(cell => cell.outputs.toJSON())")


def shut_down(page):
    """End the kernel of the open notebook."""
    page.evaluate(f"{_PANEL}.sessionContext.shutdown()")


def screenshots(page, folder, name):
    """Take pictures of the open notebook from top to bottom, a window's height each."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.png"):
        old.unlink()
    scroller = f"{_PANEL}.content.node.querySelector('.jp-WindowedPanel-outer')"
    step, end = page.evaluate(f"[{scroller}.clientHeight, {scroller}.scrollHeight]")
    for number, top in enumerate(range(0, end, step)):
        page.evaluate(f"{scroller}.scrollTop = {top}")
        page.screenshot(path=folder / f"{name}-{number:02}.png")
