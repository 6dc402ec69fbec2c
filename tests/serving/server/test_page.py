"""The web page, in a headless Chromium: real clicks and keys, on wide and narrow screens, and hostile text."""

import importlib
import pkgutil
import re
from importlib.resources import files

import pytest

from deltatune import tasks
from deltatune.serving.server.guard.api_keys import ApiKey, KeyFile, add_key
from deltatune.tasks import Classify, ExtractiveQA, Tag
from support.guarded_server import client, wait_for
from support.html_pages import BROWSER, needs_browser, outline
from support.page_server import HOSTILE, PageServer

PAGE = files("deltatune.serving.server.page")
DONE = "article[aria-busy=false]"


@pytest.fixture(scope="module")
def server():
    server = PageServer(extra=10_000)
    with server.running() as server.address:
        yield server


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """`open_page(address, width)` opens the page; at the end nothing may have been said on the console."""
    contexts, said = [], []

    def opened(address, width=1280, **more):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, **more))
        page = contexts[-1].new_page()
        page.set_default_timeout(8000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(address) else None)
        page.goto(address)
        page.wait_for_selector("#facts dd, #problem:not([hidden])")
        return page

    yield opened
    for context in contexts:
        context.close()
    # the browser itself notes answers with an error status: they are no faults of the page
    assert [text for text in said if "Failed to load resource" not in text and not text.startswith("data:")] == []


def pick(page, letter, name):
    page.fill(f"#adapter-{letter}", name)
    page.keyboard.press("Enter")
    assert page.input_value(f"#adapter-{letter}") == name


def ask(page, text=None, answers=2):
    if text is not None:
        page.fill("#text", text)
    page.click("#send")
    page.wait_for_function(
        "count => document.querySelectorAll('article[aria-busy=false]').length === count", arg=answers
    )
    return [article.inner_text() for article in page.query_selector_all(DONE)]


def test_the_page_loads_nothing_from_elsewhere_and_has_nothing_inline():
    html = PAGE.joinpath("page.html").read_text()
    found = outline(html.replace("<input", "<img").replace("<img id", "<img id"))
    assert all(value.startswith(("/page/", "data:,")) for _, _, value in found.addresses)
    assert "<style" not in html
    assert "style=" not in html
    assert re.findall(r"<script(?![^>]*src=)", html) == []
    for script in (entry for entry in PAGE.iterdir() if entry.name.endswith(".js")):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?:", script.read_text())


def test_it_knows_the_route_of_every_task():
    """By the name of the task: a task that a page does not know is asked to write."""
    for module in pkgutil.walk_packages(tasks.__path__, "deltatune.tasks."):
        importlib.import_module(module.name)
    kinds = {"/v1/classify": "labels", "/v1/tag": "tags", "/v1/answer": "span"}
    routes = ((Classify, "/v1/classify"), (Tag, "/v1/tag"), (ExtractiveQA, "/v1/answer"))
    expected = {
        kind.name: kinds[route]
        for base, route in routes
        for kind in [base, *subclasses(base)]
        if kind.__module__.startswith("deltatune.tasks.")
    }
    table = re.search(r"const KINDS = \{(.*?)\};", PAGE.joinpath("asking.js").read_text(), re.DOTALL).group(1)
    assert dict(re.findall(r'"?([\w-]+)"?: "(\w+)"', table)) == expected


def subclasses(kind):
    return [below for each in kind.__subclasses__() for below in (each, *subclasses(each))]


def test_its_files_are_served_with_a_policy_and_no_others(server):
    with client(server.address) as http:
        for path in ("/", "/page/theme.css", "/page/page.css", "/page/page.js", "/page/picker.js"):
            answer = http.get(path)
            assert answer.status_code == 200
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
        for path in ("/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page/page.html/x", "/page/nothing.js"):
            assert http.get(path).status_code == 404


@pytest.mark.browser
@needs_browser
def test_two_adapters_answer_side_by_side_as_they_write(server, open_page):
    page = open_page(server.address)
    assert page.inner_text("#facts") == f"Model\ntiny/llama\nAdapters\n{len(server.names()):,}"
    pick(page, "a", "german")
    pick(page, "b", "writer")
    page.fill("#weight-a", "0.35")
    assert page.inner_text("output >> nth=0") == "0.35"
    server.asked.clear()
    one, two = ask(page, "once upon a time")
    assert re.fullmatch(r"A: german × 0.35\s+german:0.35 says once upon a time\s+first token .+ tokens/s", one)
    assert "writer:1 says once upon a time" in two
    plain, trained = sorted(server.asked, key=lambda body: "input" in body)
    assert (plain["adapters"], plain["prompt"], plain["max_tokens"]) == ({"german": 0.35}, "once upon a time", 64)
    assert (trained["adapters"], trained["input"]) == ({"writer": 1}, "once upon a time")
    assert "max_tokens" not in trained  # what is not filled in is as the adapter was trained
    page.check("[value=together]")
    (both,) = ask(page, answers=1)
    assert "A and B: german × 0.35 + writer × 1" in both
    assert "german:0.35+writer:1 says" in both
    page.click("summary")
    page.select_option("#form", "chat")
    assert "chat: once upon a time" in ask(page, answers=1)[0]


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_labels_tags_and_marked_answers(server, open_page):
    page = open_page(server.address)
    pick(page, "a", "mood")
    pick(page, "b", "names")
    bars, tags = ask(page, "Anna met Bob")
    assert re.search(r"positive\s+90.0 %\s+negative\s+7.0 %", bars)
    widths = page.eval_on_selector_all(".bars i span", "bars => bars.map(bar => bar.style.width)")
    assert widths == ["90%", "7%", "3%"]
    marks = page.eval_on_selector_all("mark", "marks => marks.map(mark => mark.innerText)")
    assert [mark.split()[0] for mark in marks] == ["Anna", "Bob"]
    assert "met" in tags
    pick(page, "a", "price")
    pick(page, "b", "pos")
    number, words = ask(page)
    assert "12.50" in number
    assert re.search(r"Anna\s+NOUN\s+met\s+VERB", words)
    pick(page, "a", "reader")
    pick(page, "b", "base")
    page.fill("#question", "Bob?")
    ask(page, "😀😀 Anna met Bob in Paris")
    assert page.inner_text("mark") == "Bob"  # characters are counted as Python counts them
    assert page.inner_text(".context") == "😀😀 Anna met Bob in Paris"
    page.fill("#question", "Rome?")
    assert "no answer in the text" in ask(page)[0]
    assert not page.is_visible("#second")
    pick(page, "b", "mood")
    page.fill("#second", "another text")
    server.asked.clear()
    ask(page)
    assert [["😀😀 Anna met Bob in Paris", "another text"]] in [body.get("input") for body in server.asked]


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_ten_thousand_adapters_are_found_by_parts_of_their_names(server, open_page):
    page = open_page(server.address)
    page.click("#adapter-a")
    assert page.locator("#adapter-a-list [role=option]").count() == 50
    assert "more: type to narrow" in page.inner_text("#adapter-a-list")
    began = page.evaluate("performance.now()")
    page.keyboard.type("lora task-0987")
    assert page.evaluate("performance.now()") - began < 3000
    shown = page.eval_on_selector_all("#adapter-a-list [role=option]", "all => all.map(one => one.firstChild.data)")
    assert shown == [f"task-0987{digit}" for digit in range(10)]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    active = page.get_attribute("#adapter-a", "aria-activedescendant")
    assert page.inner_text(f"#{active}").startswith("task-09872")
    page.keyboard.press("Enter")
    assert page.input_value("#adapter-a") == "task-09872"
    assert page.get_attribute("#adapter-a", "aria-expanded") == "false"
    page.fill("#adapter-a", "nowhere to be found")
    assert "no such adapter" in page.inner_text("#adapter-a-list")
    page.keyboard.press("Escape")
    assert page.input_value("#adapter-a") == "task-09872"
    page.fill("#adapter-a", "tag")  # tasks are searched too
    assert "names" in page.inner_text("#adapter-a-list")
    page.fill("#adapter-a", "mood")
    page.click("#text")  # a name in full is chosen when the field is left
    assert "mood × 1" in ask(page, "fine")[0]


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_the_keyboard_alone_is_enough(server, open_page):
    page = open_page(server.address)
    server.asked.clear()
    keys = ["Tab", "Tab", "ArrowRight", "ArrowLeft", "Tab"]  # the theme, the mode and back, adapter A
    for key in keys:
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.id") == "adapter-a"
    page.keyboard.type("mood")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.type("german")
    page.keyboard.press("Enter")
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("it was fine")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => document.querySelectorAll('article[aria-busy=false]').length === 2")
    assert {"model": "base", "adapters": {"mood": 0.85}, "input": "it was fine"} in server.asked
    assert page.inner_text("#announcer") == "A has answered; B has answered."


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_every_control_has_a_name_and_roles_are_right(server, open_page):
    page = open_page(server.address)
    page.click("summary")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button')]
        .filter(node => node.offsetParent && !(node.labels && node.labels.length) && !node.innerText.trim())
        .map(node => node.id)"""
    )
    assert unnamed == []
    assert page.get_by_role("combobox", name="Adapter").count() == 2
    assert page.get_by_role("slider", name="Weight").count() == 2
    assert page.get_by_role("radio", name="both at once").count() == 1
    assert page.get_by_role("group", name="A", exact=True).count() == 1
    page.click("#adapter-a")
    assert page.get_by_role("listbox", name="Adapter").count() == 1


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 320])
def test_narrow_screens_do_not_scroll_sideways(server, open_page, width, scheme):
    page = open_page(server.address, width, color_scheme=scheme)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    page.click("summary")
    for one, other in (("mood", "names"), (HOSTILE, "broken"), ("reader", "pos")):
        pick(page, "a", one)
        pick(page, "b", other)
        ask(page, "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenfabrikationsgebäude " * 2)
        assert page.evaluate(fits)
    page.click("#adapter-b")
    assert page.evaluate(fits)
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(253, 253, 252)" if scheme == "light" else "rgb(18, 23, 28)")


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_names_answers_and_errors_stay_text(server, open_page):
    page = open_page(server.address)
    title = page.title()
    pick(page, "a", HOSTILE)
    pick(page, "b", HOSTILE[:-1])
    one, two = ask(page, HOSTILE)
    assert f"{HOSTILE}:1 says {HOSTILE}" in one
    assert HOSTILE in two
    pick(page, "a", "broken")
    pick(page, "b", "names")
    one, two = ask(page, f"Anna {HOSTILE}")
    assert f"The server is overloaded: {HOSTILE} Try again in 7 s." in one
    page.wait_for_timeout(200)
    assert page.title() == title
    assert page.locator("main img, main script").count() == 0


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_answers_are_stopped_and_errors_shown_plainly(server, open_page):
    page = open_page(server.address)
    pick(page, "a", "slow")
    pick(page, "b", "cut")
    page.fill("#text", "once upon")
    page.click("#send")
    page.wait_for_selector("article.b[aria-busy=false]")
    assert "The server broke off in the middle of its answer." in page.inner_text("article.b")
    assert page.inner_text("article.b .written").strip() == "cut:1"
    assert page.is_disabled("#send")
    page.keyboard.press("Escape")
    page.wait_for_selector("article.a[aria-busy=false]")
    assert "stopped" in page.inner_text("article.a")
    assert wait_for(lambda: "slow:1" in server.cancelled)
    assert page.is_enabled("#send")


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_a_key_is_asked_for_and_kept_in_its_tab_alone(tmp_path, open_page, chromium):
    path = tmp_path / "keys.json"
    secret = add_key(path, ApiKey("anna", adapters=("german", "mood")))
    server = PageServer(keys=KeyFile(path))
    with server.running() as address:
        page = open_page(address)
        assert page.inner_text("#problem") == "This server needs an API key."
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("dt-wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('problem').textContent.startsWith('Incorrect')")
        page.fill("#key", secret)
        page.keyboard.press("Enter")
        page.wait_for_selector("#facts dd")
        assert page.inner_text("#facts dd >> nth=1") == "2"
        assert not page.is_visible("#problem")
        assert "german:1 says hello" in ask(page, "hello")[0]
        page.reload()
        page.wait_for_selector("#facts dd")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert secret not in page.url
        other = page.context.new_page()
        other.goto(address)
        other.wait_for_selector("#problem:not([hidden])")
        assert secret not in server.lines.getvalue()


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_the_page_of_a_real_server(served, open_page):
    page = open_page(served.address)
    given = {"prompt": "the film is good", "max_tokens": 64, "temperature": 0}
    texts = {
        name: served.post("/v1/completions", model=name, input="the film is good", temperature=0)["choices"][0]["text"]
        for name in ("plain", "plain-ia3")
    }
    pick(page, "a", "plain")
    pick(page, "b", "plain-ia3")
    page.click("summary")
    page.fill("#temperature", "0")
    ask(page, "the film is good")
    assert [each.inner_text().split() for each in page.query_selector_all(".written")] == [
        text.split() for text in texts.values()
    ]
    pick(page, "a", "base")
    page.check("[value=together]")
    ask(page, answers=1)
    page.select_option("#form", "prompt")
    ask(page, answers=1)
    alone = served.post("/v1/completions", model="plain-ia3", **given)["choices"][0]["text"]
    assert page.inner_text(".written").split() == alone.split()
    page.check("[value=apart]")
    page.select_option("#form", "auto")
    pick(page, "a", "sst2")
    pick(page, "b", "ner")
    bars, _ = ask(page)
    scores = served.post("/v1/classify", model="sst2", input="the film is good")["data"][0]["scores"]
    assert all(f"{100 * share:.1f} %" in bars for share in scores.values())
    spans = served.post("/v1/tag", model="ner", input="the film is good")["data"][0]["spans"]
    marks = page.eval_on_selector_all("mark", "marks => marks.map(mark => mark.innerText)")
    assert marks == [f"{span['text']} {span['type']}" for span in spans]
    pick(page, "a", "squad")
    pick(page, "b", "topics")
    page.fill("#question", "the film?")
    context = "the film is good and it is the plot"
    answer, _ = ask(page, context)
    found = served.post("/v1/answer", model="squad", question="the film?", context=context)["data"][0]
    assert found["answer"] in answer
    pick(page, "a", "mixed")
    page.select_option("#form", "labels")
    page.fill("#part", "sentiment")
    assert "good" in ask(page)[0]
    page.fill("#part", "")
    assert "mixed has several tasks; name one with part: names, sentiment" in ask(page)[0]
