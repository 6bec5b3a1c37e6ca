"""A person at Airflow's pages, in a real browser: Debian's Chromium, driven by Playwright.

Only what people see is used: links, buttons, headings, fields by their labels. Chromium gets an empty profile
and asks nobody but loopback.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

#: How long a page may take to show something, on a busy machine.
PATIENCE_MS = 60_000
WIDTH, HEIGHT = 1400, 1000

#: No service of Google's is looked for, no profile is kept; as root there is no sandbox.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing but the pages under test is ever resolved.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def chromium_path() -> str | None:
    """Return where Chromium is; ``None`` if it is not installed."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def require_chromium() -> str:
    """Return where Chromium is; skip the test without one, except where CI is set, which fails."""
    path = chromium_path()
    if path is None and os.environ.get("CI"):
        pytest.fail("CI has no Chromium: .ci/run installs it")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return path


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a headless Chromium with an empty profile."""
    path = require_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Person:
    """Somebody at Airflow's pages.

    :param browser: the browser.
    :param base_url: the API server, without a slash at the end.
    :param pictures: folder for screenshots.
    :param user: name and password to log in with; ``None`` where everybody is let in.
    """

    def __init__(
        self, browser: Browser, base_url: str, *, pictures: Path, user: tuple[str, str] | None = None
    ) -> None:
        self.base_url = base_url
        self.pictures = pictures
        self.user = user
        self._context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, locale="en-US", timezone_id="UTC"
        )
        self._context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self._context.new_page()

    def __enter__(self) -> Person:
        self.log_in()
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            self.picture("at-the-failure")
        self._context.close()

    def log_in(self) -> None:
        """Open Airflow; where a login page comes, fill it in."""
        self.page.goto(f"{self.base_url}/")
        if self.user is not None:
            name, password = self.user
            self.page.locator("input[name=username]").fill(name)
            self.page.locator("input[name=password]").fill(password)
            self.page.get_by_role("button", name=re.compile("sign in|log ?in", re.IGNORECASE)).click()
        expect(self.page.get_by_role("link", name="Dags").first).to_be_visible(timeout=PATIENCE_MS)

    def picture(self, name: str) -> Path:
        """Take a screenshot and return where it is."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def open_required_actions(self) -> None:
        """Open the list of all questions, those that wait first, by the menu: Browse, Required Actions."""
        self.page.get_by_role("button", name="Browse").click()
        self.page.get_by_role("menuitem", name="Required Actions").click()
        expect(self.page).to_have_url(re.compile(r"/required_actions"), timeout=PATIENCE_MS)

    def question_link(self, subject: str) -> Any:
        """Return the link to one question in the list."""
        return self.page.get_by_role("link", name=subject)

    def open_question(self, subject: str) -> None:
        """Go from the list to one question."""
        link = self.question_link(subject)
        expect(link).to_be_visible(timeout=PATIENCE_MS)
        link.click()
        expect(self.page).to_have_url(re.compile(r"/tasks/.+/required_actions"), timeout=PATIENCE_MS)

    def go_to_question(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Open the page of one task's question by its address."""
        path = f"dags/{dag_id}/runs/{quote(run_id, safe='')}/tasks/{task_id}/required_actions"
        self.page.goto(f"{self.base_url}/{path}")

    def expect_no_pending_question(self, subject: str) -> None:
        """Open the list of the questions that nobody has answered, and see that one is not among them."""
        with self.page.expect_response(
            lambda response: "/hitlDetails" in response.url and "response_received=false" in response.url
        ) as listed:
            self.page.goto(f"{self.base_url}/required_actions?response_received=false")
        assert listed.value.ok, listed.value.text()
        assert subject not in [one["subject"] for one in listed.value.json()["hitl_details"]]
        expect(self.question_link(subject)).to_have_count(0, timeout=PATIENCE_MS)

    def expect_text(self, *texts: str) -> None:
        """Wait until the page shows all of the texts."""
        for text in texts:
            expect(self.page.get_by_text(text).first).to_be_visible(timeout=PATIENCE_MS)

    def fill_in(self, fields: Mapping[str, str]) -> None:
        """Fill in fields of the question by their names."""
        for name, value in fields.items():
            box = self.page.locator(f"input[name='element_{name}']")
            box.fill(value)
            box.blur()

    def answer(self, option: str, fields: Mapping[str, str] | None = None) -> None:
        """Answer the open question; Airflow takes it."""
        status = self.try_to_answer(option, fields)
        assert status == 200, status

    def try_to_answer(self, option: str, fields: Mapping[str, str] | None = None) -> int:
        """Press a button of the open question, and return the status with which Airflow answered."""
        self.fill_in(fields or {})
        with self.page.expect_response(
            lambda response: response.request.method == "PATCH" and response.url.endswith("/hitlDetails")
        ) as answered:
            self.page.get_by_role("button", name=option, exact=True).click()
        return int(answered.value.status)
