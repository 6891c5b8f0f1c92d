"""The report in a real Chromium, opened from disk as a reader opens it: it works, and nothing in it is taken for
markup. NIC_SCREENSHOTS names a folder that pictures of it are put in."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from jobs.common.report import render
from tests.report_pages import CELLS, HARM, page_of

IMAGES = 2000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the report's tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=120_000)
        yield started
        started.close()


@pytest.fixture(scope="module")
def opened(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A report of IMAGES images. What its console says, and whatever it asks the network for, is an error."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(render(page_of(IMAGES)), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    assert said == []


@pytest.fixture
def page(opened: Page) -> Page:
    """The page as it stands after loading."""
    opened.fill("#search", "")
    opened.select_option("#order", "worst")
    opened.select_option("#measure", label="CIDEr-D")
    opened.keyboard.press("Escape")
    opened.locator("#measure").blur()
    return opened


def names(page: Page, n: int = 5) -> list[str]:
    """Of the first cards."""
    return [text or "" for text in page.locator(".card .name").all_text_contents()[:n]]


def measured(page: Page) -> list[float]:
    """The main metric of the cards that there are, in their order."""
    return [float(text) for text in page.locator(".measures div:nth-child(3) dd").all_text_contents()]


def test_sorts(page: Page) -> None:
    assert page.locator("#found").text_content() == "2,000 of 2,000 images"
    worst = measured(page)
    assert len(worst) == 60  # the others come as they are scrolled to
    assert worst == sorted(worst)
    page.select_option("#order", "best")
    best = measured(page)
    assert best == sorted(best, reverse=True)
    assert best[-1] > worst[-1]
    page.select_option("#order", "failed")
    assert page.locator(".card").first.locator(".failed").text_content() == f"decode_error: {HARM}"
    page.select_option("#order", "name")
    assert names(page, 2) == [HARM, "photo-00000.jpg"]
    page.select_option("#order", "random")
    assert names(page) != ["photo-00000.jpg"]
    page.select_option("#order", "worst")
    page.select_option("#measure", label="BLEU-1")
    first = [float(text) for text in page.locator(".measures div:nth-child(1) dd").all_text_contents()]
    assert first == sorted(first)


def test_searches(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("NUMBER 1234 dog")
    assert page.locator("#found").text_content() == "1 of 2,000 images"
    assert names(page) == ["photo-01234.jpg"]
    page.fill("#search", "onerror number")
    assert page.locator("#found").text_content() == "0 of 2,000 images"
    page.fill("#search", "")
    assert page.locator("#found").text_content() == "2,000 of 2,000 images"


def test_all_images_are_reached_by_scrolling(page: Page) -> None:
    page.fill("#search", "photo-001")
    page.keyboard.press("Escape")  # leaves the field, and what was searched for stays
    for order in ("name", "best", "worst"):  # each time from the end of the list before
        page.select_option("#order", order)
        page.locator("#order").blur()
        assert page.locator(".card").count() == 60
        for _ in range(50):  # where the end is shows only as cards come into sight
            if page.locator(".card").count() == 100:
                break
            page.keyboard.press("End")
            page.wait_for_timeout(200)
        assert len(set(names(page, 100))) == 100
        assert page.locator(".card").count() == 100


def test_attention_on_hover_and_by_keyboard(page: Page) -> None:
    page.fill("#search", "photo-00100.jpg")
    card = page.locator(".card")
    card.scroll_into_view_if_needed()
    word = card.locator("[data-word='2']")
    word.hover()
    canvas = card.locator("canvas")
    canvas.wait_for()
    size = canvas.evaluate("it => [it.width, it.height, it.getBoundingClientRect().width]")
    image = card.locator("img").evaluate("it => [it.getBoundingClientRect().width, it.naturalWidth]")
    assert size[0] * size[1] == CELLS
    assert size[2] == image[0]
    assert image[1] >= 100
    assert card.locator(".looking").text_content() == "number"
    # The darkest cell is the one looked at least.
    alpha = canvas.evaluate(
        "it => [...it.getContext('2d').getImageData(0, 0, 7, 7).data].filter((_, i) => i % 4 === 3)"
    )
    assert len(alpha) == CELLS
    assert max(alpha) <= 215
    assert len(set(alpha)) > 5
    page.mouse.move(0, 0)
    canvas.wait_for(state="detached")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    for expected in ("a", "dog", "number"):
        page.keyboard.press("ArrowRight")
        assert card.locator(".looking").text_content() == expected
    page.keyboard.press("ArrowLeft")
    assert card.locator(".looking").text_content() == "dog"


def test_texts_are_never_markup(page: Page) -> None:
    page.fill("#search", "onerror")
    page.select_option("#order", "name")
    card = page.locator(".card").first
    assert card.locator(".caption").text_content() == HARM
    assert card.locator(".name").text_content() == HARM
    assert card.locator("li").all_text_contents() == [HARM]
    assert page.locator("body").text_content().count(HARM) >= 5  # type: ignore[union-attr]
    assert page.locator("b").count() == 0
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "Captions of out/captions"
    assert "49" not in (card.text_content() or "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_is_accessible_and_fits(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / "report.html").write_text(render(page_of(12, photographs=12)), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("NIC_SCREENSHOTS"):
        page.locator("[data-word='1']").first.hover()
        page.screenshot(path=f"{folder}/report-{width}-{scheme}.png", full_page=True)
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in ("serious", "critical")] == []
    context.close()
