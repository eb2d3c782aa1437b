"""The page of a report in a real browser."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tests.report.test_page import NASTY, page_of
from tests.support.commands import whoseblock
from tests.support.tools import program

Browser = webdriver.Chrome


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for word in (
        "headless=new",
        "hide-scrollbars",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(program("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, demo_image: Path) -> Path:
    """Provide the report of a whole image."""
    path = tmp_path_factory.mktemp("report") / "page.html"
    done = whoseblock("lookup", demo_image, "0+300M", "--report", path)
    assert done.returncode == 0, done.stderr
    return path


def console(browser: Browser) -> list[dict[str, Any]]:
    """Return what the browser reported since the last call."""
    messages: list[dict[str, Any]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return messages


def show(browser: Browser, path: Path, width: int = 1280, **media: str) -> None:
    """Load a page in a window of some width; the console must stay empty."""
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(path.as_uri())
    assert console(browser) == []


def cells(browser: Browser) -> list[tuple[str, str, str]]:
    """Return the cells of the first map: class, column, row."""
    script = """
        return [...document.querySelectorAll("#map0 .cell")].map(
            one => ["class", "x", "y"].map(name => one.getAttribute(name)))
    """
    return sorted((kind, x, y) for kind, x, y in browser.execute_script(script))


def paths(browser: Browser) -> list[str]:
    """Return the paths of the files that are shown, from the top."""
    found = browser.find_elements(By.CSS_SELECTOR, "#lost tbody tr:not([hidden]) .name")
    return [one.text for one in found]


def place(browser: Browser) -> str:
    return browser.find_element(By.CSS_SELECTOR, "#map0 .place").text


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(
    browser: Browser, page: Path, width: int, scheme: str
) -> None:
    show(browser, page, width, prefers_color_scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


def test_the_map_is_the_same_without_the_script(browser: Browser, page: Path) -> None:
    show(browser, page)
    drawn = cells(browser)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, page)
        # What has no function without a script is not there.
        assert not browser.find_element(By.ID, "search").is_displayed()
        assert not browser.find_element(By.CSS_SELECTOR, "#map0 .tools").is_displayed()
        document = browser.execute_cdp_cmd("DOM.getDocument", {"depth": -1})
        still = sorted(_cells_in(document["root"]))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert still == drawn
    assert len(still) == 1024


def _cells_in(node: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    given = node.get("attributes", [])
    attributes = dict(zip(given[::2], given[1::2], strict=True))
    if attributes.get("class", "").startswith("cell "):
        yield attributes["class"], attributes["x"], attributes["y"]
    for child in node.get("children", []):
        yield from _cells_in(child)


def test_search_and_sort(browser: Browser, page: Path) -> None:
    show(browser, page)
    everything = paths(browser)
    assert len(everything) > 20
    box = browser.find_element(By.ID, "search")
    box.send_keys("HARBOUR")
    found = [path for path in everything if "harbour" in path]
    assert paths(browser) == found
    assert browser.find_element(By.ID, "found").text == f"{len(found)} of {len(everything)}"
    box.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert paths(browser) == everything
    head = browser.find_elements(By.CSS_SELECTOR, "#lost th button")
    head[0].click()
    ascending = paths(browser)
    assert sorted(ascending) == sorted(everything)
    assert ascending != everything
    head[0].click()
    assert paths(browser) == ascending[::-1]
    head[1].click()
    values = browser.find_elements(By.CSS_SELECTOR, "#lost tbody tr td:nth-child(2)")
    sizes = [int(one.get_attribute("data-value") or "") for one in values]
    assert sizes == sorted(sizes, reverse=True)
    assert console(browser) == []


def test_zoom_down_to_sectors_and_back(browser: Browser, page: Path) -> None:
    show(browser, page)
    whole, overview = place(browser), cells(browser)
    row = browser.find_element(By.XPATH, "//tr[.//span[text()='/people/notes.txt']]")
    start = int(row.get_attribute("data-start") or "")
    row.find_element(By.CSS_SELECTOR, "button.show").click()
    # 1024 sectors around the file: each of its 256 is a cell.
    low, high = (int(word.rstrip("."), 16) for word in place(browser).split()[1::2])
    assert high - low == 1024 * 512
    first = (start - low) // 512
    of_file = {(str(n % 64), str(n // 64)) for n in range(first, first + 256)}
    assert of_file <= {(x, y) for kind, x, y in cells(browser) if kind == "cell file"}
    tools = browser.find_elements(By.CSS_SELECTOR, "#map0 .tools button")
    by_name = {one.get_attribute("data-do"): one for one in tools}
    assert not by_name["in"].is_enabled()
    by_name["out"].click()
    assert place(browser) != whole
    by_name["all"].click()
    assert (place(browser), cells(browser)) == (whole, overview)
    assert not by_name["out"].is_enabled()
    drawing = browser.find_element(By.CSS_SELECTOR, "#map0 .cells")
    drawing.send_keys("+")
    zoomed = place(browser)
    assert zoomed != whole
    drawing.send_keys(Keys.ARROW_DOWN)
    assert place(browser) != zoomed
    drawing.send_keys("0")
    assert place(browser) == whole
    by_name["next"].click()
    assert place(browser) != whole
    assert console(browser) == []


def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(NASTY), "utf-8")
    show(browser, path)
    assert browser.execute_script("return document.scripts.length") == 2
    # Not even a script that got into the page would run.
    browser.execute_script(
        "const one = document.createElement('script'); one.textContent = 'window.ran = 1';"
        "document.body.append(one)"
    )
    assert browser.execute_script("return window.ran") is None
    assert any("Content Security Policy" in one["message"] for one in console(browser))


def test_print(browser: Browser, page: Path) -> None:
    show(browser, page, prefers_color_scheme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(255, 255, 255)"
    assert not browser.find_element(By.ID, "search").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    pdf = base64.b64decode(browser.print_page())
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 10_000
