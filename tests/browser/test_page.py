"""The page in a real browser: Debian's chromium, headless, with a microphone and a camera that are not real.

Needs `apt-get install chromium chromium-driver` and the package selenium; skipped without. VEXPRESS_SCREENSHOTS=FOLDER
keeps pictures of the page.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

selenium = pytest.importorskip("selenium", reason="needs the package selenium")
pytest.importorskip("fastapi", reason="needs the extra serve")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from vexpress.media.audio import load_audio  # noqa: E402

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "vexpress" / "demo_pack" / "examples"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = os.environ.get("VEXPRESS_SCREENSHOTS")
PATIENCE_SECONDS = 120
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A real process on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vexpress", "serve", "--port", str(port)]
    folder = tmp_path_factory.mktemp("serve")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--data_dir", str(folder / "data")], stderr=log, cwd=ROOT)
        try:
            base = f"http://localhost:{port}"
            for _ in range(PATIENCE_SECONDS * 2):
                with contextlib.suppress(OSError):
                    info = json.load(urllib.request.urlopen(f"{base}/v1/info"))
                    if info["live"]["factor"] is not None:
                        break
                time.sleep(0.5)
            else:
                raise AssertionError((folder / "log").read_text())
            yield base
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1400,1000",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--hide-scrollbars",
        f"--use-file-for-fake-audio-capture={EXAMPLES / 'speech.wav'}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1400, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get("about:blank")
    browser.get(f"{address}/#create")
    until(browser, lambda: browser.execute_script("return document.body.dataset.ready"))
    until(browser, lambda: "one face" in text(browser, "portrait-note"))
    return browser


def until(browser, condition, seconds: float = PATIENCE_SECONDS):
    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(lambda _: condition())


def text(browser, name: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def element(browser, name: str):
    return browser.find_element(By.ID, name)


def choose(browser, group: str, value: str) -> None:
    browser.execute_script(f'document.querySelector(\'[name="{group}"][value="{value}"]\').click()')


def set_option(browser, name: str, value: str) -> None:
    script = "const i = document.getElementById('option-' + arguments[0]); i.value = arguments[1];"
    browser.execute_script(script, name, value)


def quick(browser, steps: int = 1, fps: str = "10") -> None:
    set_option(browser, "num_inference_steps", str(steps))
    set_option(browser, "fps", fps)


def shot(browser, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(exist_ok=True)
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def pixels(browser, name: str) -> np.ndarray:
    """What a video or canvas of the page shows, (H W 3)."""
    data = browser.execute_script(
        "const e = document.getElementById(arguments[0]), c = document.createElement('canvas');"
        "c.width = c.height = 96;"
        "c.getContext('2d').drawImage(e, 0, 0, 96, 96);"
        "return Array.from(c.getContext('2d').getImageData(0, 0, 96, 96).data)",
        name,
    )
    return np.array(data, np.float32).reshape(96, 96, 4)[..., :3]


def make(browser) -> None:
    element(browser, "run").click()
    until(browser, lambda: element(browser, "run").is_displayed())


def test_upload_and_generate(page, tmp_path):
    picture = Image.new("RGB", (200, 160), (200, 190, 180))
    picture.paste(Image.open(EXAMPLES / "portrait.png").resize((120, 120)), (40, 20))
    picture.save(tmp_path / "wide.png")
    element(page, "portrait-file").send_keys(str(tmp_path / "wide.png"))
    until(page, lambda: "200 × 160" in text(page, "portrait-note"))
    assert element(page, "auto-crop").is_selected()
    crop = page.execute_script(
        "const c = document.getElementById('crop'); return [c.hidden, c.style.left, c.style.width]"
    )
    assert crop[0] is False
    assert crop[1].endswith("%")
    choose(page, "voice-kind", "upload")
    element(page, "voice-file").send_keys(str(EXAMPLES / "speech.wav"))
    quick(page)
    shot(page, "upload-1400")
    make(page)
    num_frames = round(load_audio(EXAMPLES / "speech.wav").duration_seconds * 10)
    assert f"{num_frames} frames in" in text(page, "state"), text(page, "state")
    shot(page, "result-1400")
    assert "vexpress generate" in text(page, "command")
    assert "--auto_crop" in text(page, "command")
    assert "curl -F portrait=@portrait.png" in text(page, "api-call")
    link = element(page, "download").get_attribute("href")
    assert urllib.request.urlopen(link).read()[4:8] == b"ftyp"
    until(page, lambda: page.execute_script("return document.getElementById('sheet').naturalWidth") > 500)
    page.find_element(By.ID, "tab-history").click()
    until(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#history video")) >= 1)
    shot(page, "history-1400")


def test_frames_are_seen_while_they_are_made(page):
    """With three seconds of sound at full rate there is more than one window, so the first is shown before the last."""
    set_option(page, "num_inference_steps", "6")
    element(page, "run").click()
    seen = page.execute_async_script(
        "const done = arguments[0], video = document.getElementById('video'), state = document.getElementById('state');"
        "const look = () => { const of = state.textContent.match(/^(\\d+) of (\\d+) frames/);"
        "if (video.readyState >= 2 && video.buffered.length && of) done([+of[1], +of[2], video.buffered.end(0)]);"
        "else if (/frames in|error/.test(state.textContent)) done(state.textContent); else setTimeout(look, 20); };"
        "look();"
    )
    assert isinstance(seen, list), seen
    assert seen[0] < seen[1]
    shot(page, "making-1400")
    until(page, lambda: element(page, "run").is_displayed())


def test_record_from_the_microphone(page):
    choose(page, "voice-kind", "record")
    element(page, "record").click()
    until(page, lambda: float(text(page, "record-time").split()[0]) > 1.5, 20)
    element(page, "record").click()
    until(page, lambda: page.execute_script("return document.getElementById('voice-audio').duration || 0") > 1.4)
    quick(page, fps="5")
    make(page)
    assert "frames in" in text(page, "state"), text(page, "state")


def test_camera(page):
    element(page, "portrait-camera").click()
    until(page, lambda: page.execute_script("return document.getElementById('camera').videoWidth") > 0)
    element(page, "portrait-camera").click()
    until(page, lambda: "no face was found" in text(page, "portrait-note"))  # it shows a clock


def test_text_is_spoken(page):
    if not page.execute_script("return document.querySelectorAll('#voice-name option').length"):
        pytest.skip("needs espeak-ng")
    choose(page, "voice-kind", "text")
    element(page, "voice-text").clear()
    element(page, "voice-text").send_keys("Hello there.")
    quick(page, fps="5")
    make(page)
    assert "frames in" in text(page, "state"), text(page, "state")


def test_motion_of_an_example(page):
    choose(page, "motion-kind", "example")
    quick(page, fps="5")
    make(page)
    assert "--kps_path kps.npz" in text(page, "command")


def test_cancel(page):
    set_option(page, "num_inference_steps", "100")
    element(page, "run").click()
    until(page, lambda: "%" in text(page, "state") or "frames" in text(page, "state"))
    started = time.monotonic()
    element(page, "cancel").click()
    until(page, lambda: text(page, "state") == "Cancelled.")
    assert time.monotonic() - started < 20
    assert element(page, "run").is_displayed()


def test_a_bad_file_is_an_error_that_is_shown(page, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"this is no sound")
    choose(page, "voice-kind", "upload")
    element(page, "voice-file").send_keys(str(tmp_path / "bad.wav"))
    make(page)
    assert text(page, "state").startswith("audio: "), text(page, "state")
    assert "error" in element(page, "state").get_attribute("class")
    shot(page, "error-1400")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    element(page, "portrait-file").send_keys(str(tmp_path / "bad.png"))
    until(page, lambda: "picture" in text(page, "portrait-note"))


@pytest.mark.parametrize("output", ["mp4", "jpeg"])
def test_live(page, output):
    element(page, "tab-live").click()
    quick(page, fps="6")
    set_option(page, "context_frames", "4")
    set_option(page, "context_overlap", "1")
    if output == "jpeg":
        element(page, "live-jpeg").click()
    name = "live-video" if output == "mp4" else "live-canvas"
    element(page, "live-start").click()
    until(page, lambda: "real time" in text(page, "live-speed"))
    until(page, lambda: float(text(page, "live-time").rstrip("– s") or 0) > 0.3)
    first, moment = pixels(page, name), float(text(page, "live-time").split()[0])
    until(page, lambda: float(text(page, "live-time").split()[0]) > moment + 1.0)
    assert np.abs(pixels(page, name) - first).mean() > 0.05  # frames differ
    assert text(page, "live-latency").endswith(" s")
    shot(page, f"live-{output}-1400")
    element(page, "live-stop").click()
    assert text(page, "live-state") == "Stopped."


def test_live_says_how_much_too_slow_it_is(page, address):
    factor = json.load(urllib.request.urlopen(f"{address}/v1/info"))["live"]["factor"]
    slow = text(page, "live-slow")
    assert (f"{factor:.1f} times too slow" in slow) == (factor > 1)


def test_compare(page):
    element(page, "tab-compare").click()
    quick(page, fps="5")
    Select(element(page, "compare-option")).select_by_value("num_inference_steps")
    for name, value in (("compare-a", "1"), ("compare-b", "2")):
        element(page, name).clear()
        element(page, name).send_keys(value)
    element(page, "compare-run").click()
    until(page, lambda: text(page, "compare-state") == "Both are ready.")
    until(page, lambda: page.execute_script("return document.getElementById('compare-video-b').readyState") >= 2)
    element(page, "compare-play").click()
    time.sleep(0.7)
    one, other = pixels(page, "compare-video-a"), pixels(page, "compare-video-b")
    assert np.abs(one - other).mean() > 0.02
    shot(page, "compare-1400")


def test_keyboard(page):
    page.find_element(By.ID, "tab-create").send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element.get_attribute("id") == "tab-live"
    assert element(page, "panel-live").is_displayed()
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert element(page, "panel-create").is_displayed()
    names = set()
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        names.add(page.switch_to.active_element.get_attribute("id"))
    assert {"drop", "portrait-upload", "voice-example", "seed", "run"} <= names


def test_everything_has_a_name(page):
    nameless = page.execute_script(
        "return [...document.querySelectorAll('button, input, select, textarea, video, audio, img, meter, progress')]"
        ".filter(e => e.type !== 'file' && !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()"
        " && !e.hasAttribute('alt') && !e.querySelector('img[alt]:not([alt=\"\"])')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_fits(page, width, theme):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    page.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    for tab in ("live", "compare", "history", "create"):
        page.execute_script("document.getElementById('tab-' + arguments[0]).click()", tab)
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), tab
        if width == 390:
            shot(page, f"{tab}-{width}-{theme}")
    assert contrast(page, "state") >= 4.5
    assert contrast(page, "portrait-note") >= 4.5
    page.execute_script("document.querySelector('#advanced summary').click(); advanced.scrollIntoView()")
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "advanced"
    shot(page, f"advanced-{width}-{theme}")


def contrast(browser, name: str) -> float:
    """Of a text's colour to that of what is behind it, as WCAG computes it."""
    ink, back = browser.execute_script(
        "const s = getComputedStyle(document.documentElement), e = document.getElementById(arguments[0]);"
        "return [getComputedStyle(e).color, s.getPropertyValue(e.closest('.card') ? '--card' : '--back')]",
        name,
    )
    numbers = [int(part) for part in ink[ink.index("(") + 1 : -1].split(",")[:3]]
    behind = [int(back.strip()[i : i + 2], 16) for i in (1, 3, 5)]

    def luminance(colour: list[int]) -> float:
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(colour) / 255]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    light, dark = sorted([luminance(numbers), luminance(behind)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_no_layout_jumps(page):
    """Where the button and the picture are does not change while a video is made."""
    quick(page, fps="5")
    places = (
        "return ['video', 'voice-kinds'].map(n => document.getElementById(n).getBoundingClientRect())"
        ".map(r => [r.x, r.y + scrollY, r.width])"
    )
    before = page.execute_script(places)
    element(page, "run").click()
    during = page.execute_script(places)
    until(page, lambda: element(page, "run").is_displayed())
    assert before == during == page.execute_script(places)


def test_nothing_is_loaded_from_elsewhere_and_no_errors(page, address):
    hosts, errors = set(), []
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if url.startswith(("http", "ws")):
                hosts.add(url.split("/")[2])
    for entry in page.get_log("browser"):
        if entry["level"] == "SEVERE" and "422" not in entry["message"] and "404" not in entry["message"]:
            errors.append(entry["message"])
    assert hosts == {address.split("/")[2]}
    assert errors == []
