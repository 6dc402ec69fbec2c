"""Pages of HTML: their outline, and what a headless Chromium makes of them, if one is installed."""

import shutil
import subprocess
from html.parser import HTMLParser

import pytest

VOID = {"meta", "link", "wbr", "br", "img"}


class Outline(HTMLParser):
    """Checks that tags close in order; collects addresses, tags and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [(tag, key, value) for key, value in attributes if key in ("src", "href", "srcset", "action")]
        assert not [key for key, _ in attributes if key.startswith("on")], f"<{tag}> has a handler"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def outline(page):
    """The outline of a page whose tags all close."""
    found = Outline()
    found.feed(page)
    found.close()
    assert not found.open
    return found


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def browse(file, tmp_path, *options, fragment=""):
    """Return the page that the browser makes of a file or an address, as text."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'user'}"]
    address = file if isinstance(file, str) else file.as_uri()
    command += ["--virtual-time-budget=3000", *options, "--dump-dom", address + fragment]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
