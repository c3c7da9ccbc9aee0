"""The page in a real browser, and a Space that runs by itself."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.app import photo, save_checkpoint
from tests.helpers.scripts import SCRIPTS
from vit_hf.app.space import write_space


# A busy machine takes its time, most of all to import.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("page")]
pytest.importorskip("gradio", reason="the page needs Gradio: pip install vit_hf[app]")

STARTED, ANSWERED = 400, 100_000  # seconds, milliseconds
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def serve(command: list[str], folder: Path, **environment: str) -> Iterator[str]:
    """The address of a page that `command` serves, started in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **environment, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with open(folder / "server.log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + STARTED
            while True:
                try:
                    urllib.request.urlopen(address, timeout=10).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "server.log").read_text()
                    assert time.monotonic() < deadline, (folder / "server.log").read_text()
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    save_checkpoint(folder / "model", patch_selector="variance", num_selected_patches=10)
    photo(128, 128).save(folder / "example.png")
    command = [
        str(SCRIPTS / "app.py"),
        "--model_name_or_path",
        "model",
        "--examples",
        "example.png",
        "--device",
        "cpu",
    ]
    with serve(command, folder, PYTHONPATH=str(SCRIPTS.parent)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine (on Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield browser
        browser.close()


DESKTOP, PHONE = (1440, 900), (390, 844)


@pytest.fixture
def page(request, browser, address):
    """The page on a screen of some size, with the addresses of all that it fetched."""
    width, height = getattr(request, "param", DESKTOP)
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(ANSWERED)
    page.fetched, page.failures = [], []
    page.on("request", lambda request: page.fetched.append(request.url))
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#image input[type=file]", state="attached")
    yield page
    page.close()


def drop(page, path: Path) -> None:
    page.set_input_files("#image input[type=file]", path)


def wait_for(page, pattern: str) -> None:
    """Until the summary says it."""
    page.locator("#summary", has_text=re.compile(pattern)).wait_for()


def picture(page, element: str) -> str:
    return page.locator(f"#{element} img").get_attribute("src")


def wait_for_other_picture(page, element: str, than: str) -> None:
    page.wait_for_function(
        "([element, than]) => document.querySelector(`#${element} img`)?.src !== than", arg=[element, than]
    )


@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_from_an_image_to_another_choice(page, tmp_path):
    photo(128, 160).save(tmp_path / "image.png")
    assert "Drop an image" in page.inner_text("#summary")
    drop(page, tmp_path / "image.png")
    wait_for(page, "10 of 320")
    # The time of all patches is known at once, or on a slow machine when it is asked for.
    page.locator("#measure:visible, #summary:has-text('for all patches')").first.wait_for()
    if page.locator("#measure").is_visible():
        page.click("#measure")
    wait_for(page, "for all patches")
    assert len(re.findall(r"\d+(\.\d)? m?s\b", page.inner_text("#summary"))) == 2
    kept, scores = picture(page, "kept"), picture(page, "map")
    assert kept != scores
    assert re.search(r"\d+\s*%", page.inner_text("#classes"))

    # The slider, by keys as by the mouse; the page answers when it is released.
    slider = page.locator("#number input[type=range]")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    number = page.locator("#number input[type=number]")
    number.fill("40")
    number.press("Enter")
    number.blur()
    wait_for(page, "40 of 320")
    wait_for_other_picture(page, "kept", kept)

    page.locator("#selector input").click()
    page.get_by_role("option", name="saliency").click()
    wait_for_other_picture(page, "map", scores)
    wait_for(page, "40 of 320")
    assert "contrast" in page.inner_text("#selector")

    page.locator("#selector input").click()
    page.get_by_role("option", name="all patches").click()
    wait_for(page, "320 of 320")
    assert page.locator("#number input[type=range]").is_disabled()
    page.locator("#map_caption", has_text="Attention").wait_for()

    # Offline, nothing is missing; and nothing sticks out at the side.
    hosts = {url.split("/")[2] for url in page.fetched if url.startswith("http")}
    assert hosts == {page.url.split("/")[2]}
    assert not page.failures
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def clear(page) -> None:
    page.get_by_label("Remove Image").click()
    wait_for(page, "Drop an image")


def test_what_goes_wrong_is_said_and_the_next_image_works(page, tmp_path):
    photo(64, 64).save(tmp_path / "damaged.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "damaged.png").read_bytes()[:600])
    drop(page, tmp_path / "damaged.png")
    wait_for(page, "Cannot read the image 'damaged.png'")
    clear(page)
    photo(4, 4).save(tmp_path / "tiny.png")
    drop(page, tmp_path / "tiny.png")
    wait_for(page, "The image is too small: at 4 x 4 pixels")
    clear(page)
    (tmp_path / "text.png").write_text("no image")
    drop(page, tmp_path / "text.png")
    wait_for(page, "Cannot read the image 'text.png'")
    assert "Traceback" not in page.inner_text("body")
    page.locator("button.gallery-item").first.click()
    wait_for(page, "10 of 256")


def test_a_space_runs_by_itself(tmp_path):
    save_checkpoint(tmp_path / "trained", patch_selector="variance")
    folder = write_space(tmp_path / "space", str(tmp_path / "trained"))
    content = folder / "vit_hf" / "app" / "content.py"
    content.write_text(content.read_text().replace("Drop an image", "Here, drop an image"))
    # Where another vit_hf is installed, the one of the Space comes first.
    with serve(["app.py"], folder, PYTHONPATH="") as address:
        config = urllib.request.urlopen(f"{address}/config", timeout=60).read().decode()
    assert "Here, drop an image" in config
