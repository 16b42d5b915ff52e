"""The report in a real browser: it opens without errors, sorts, toggles, fits a phone and asks nobody."""

from __future__ import annotations

import os
import shutil

import pytest

from latentfit.report import write

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WANTED = "return [...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[{}].dataset.v)"


def start(*arguments: str):
    driver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        webdriver = None
    if not CHROMIUM or not driver or webdriver is None:
        reason = "needs chromium, chromedriver and selenium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), *arguments):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


@pytest.fixture(scope="module")
def page(digit_result, tmp_path_factory) -> str:
    return write(digit_result, tmp_path_factory.mktemp("report") / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(page):
    driver = start()
    driver.set_window_size(1280, 900)
    driver.get(page)
    yield driver
    driver.quit()


def test_it_opens_without_an_error_and_asks_nobody(browser):
    assert browser.get_log("browser") == []
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in asked if not name.startswith("data:")] == []
    assert "at least 1.6" in browser.find_element("tag name", "h1").text


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(browser):
    heads = browser.find_elements("css selector", "table.sortable th")
    column = next(i for i, head in enumerate(heads) if head.text.startswith("log p(x)"))
    button = heads[column].find_element("tag name", "button")
    button.click()
    falling = [float(v) for v in browser.execute_script(WANTED.format(column))]
    assert falling == sorted(falling, reverse=True)
    assert heads[column].get_attribute("aria-sort") == "descending"
    button.send_keys("\ue007")  # Enter: the keyboard works too
    rising = [float(v) for v in browser.execute_script(WANTED.format(column))]
    assert rising == falling[::-1]
    heads[0].find_element("tag name", "button").click()
    names = browser.execute_script(WANTED.format(0))
    assert names == sorted(names)
    assert [h.get_attribute("aria-sort") for h in heads].count(None) == len(heads) - 1


def test_the_map_is_drawn_and_toggles(browser):
    name = "return document.querySelector('#map').data.at(-1).name"
    after = browser.execute_script(name)
    before, _ = browser.find_elements("css selector", ".toggle button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", before)
    before.click()
    assert browser.execute_script(name) == "Before: N(0, I)" != after
    assert before.get_attribute("aria-pressed") == "true"
    drawn = browser.execute_script("return document.querySelectorAll('#map .points path').length")
    assert drawn >= 900


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_scrolls_sideways(browser, page, width):
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_script_everything_but_the_interaction_is_there(page):
    driver = start("--blink-settings=scriptEnabled=false")
    try:
        driver.set_window_size(1280, 900)
        driver.get(page)
        assert driver.find_element("css selector", "h1").is_displayed()
        assert all(tile.is_displayed() for tile in driver.find_elements("css selector", ".tile"))
        assert [image.is_displayed() for image in driver.find_elements("css selector", ".grids img")] == [True] * 3
        assert driver.find_element("css selector", "#gains svg").is_displayed()
        assert driver.find_element("css selector", "#codes .printed svg").is_displayed()
        assert not driver.find_element("css selector", "#map").is_displayed()
    finally:
        driver.quit()


@pytest.fixture(params=["diagnosis", "fix"])
def model_page(request, browser, tmp_path) -> str:
    """The page of a diagnosis, or of a retrofit, opened in the browser."""
    path = request.getfixturevalue(request.param).report(tmp_path / "page.html", show_data=True)
    browser.get(path.as_uri())
    return path.as_uri()


def test_the_page_of_a_model_opens_without_an_error_toggles_and_fits_a_phone(browser, model_page):
    assert browser.get_log("browser") == []
    name = "return document.querySelector('#map').data.at(-1).name"
    after = browser.execute_script(name)
    before, _ = browser.find_elements("css selector", ".toggle button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", before)
    before.click()
    assert browser.execute_script(name) == "Before: N(0, I)" != after
    holes = browser.find_elements("css selector", "#holes .examples img")
    assert [image.size["width"] > 40 for image in holes] == [True] * 3
    for width in (320, 390, 1280):
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 700}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(model_page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_label_of_the_budget_runs_into_its_value(browser, diagnosis, tmp_path):
    """On a phone, in the language whose words are longest."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    browser.get(diagnosis.report(tmp_path / "page.html", lang="vi").as_uri())
    overlaps = browser.execute_script(
        """const t = [...document.querySelectorAll('#error .narrow text.lab, #error .narrow text.num')]
             .map(e => e.getBoundingClientRect());
           return t.some((a, i) => t.some((b, j) => i < j && a.left < b.right - 1 && b.left < a.right - 1
             && a.top < b.bottom - 3 && b.top < a.bottom - 3));"""
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert overlaps is False
