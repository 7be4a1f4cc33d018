"""A page in headless Chromium, driven by a script that a copy of the page carries."""

import json
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

_NONCE = "of-the-test"
_RESULT = "result-of-the-test"
# First in the page, so that nothing goes wrong unseen.
_WATCH = """
window.wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => wrong.push("policy: " + event.violatedDirective));
for (const kind of ["error", "warn"]) console[kind] = (...said) => wrong.push(said.join(" "));
"""
_REPORT = """
addEventListener("load", () => {
  let found;
  try { found = (() => { SCRIPT })(); } catch (error) { wrong.push(String(error)); }
  const place = document.createElement("pre");
  place.id = "ID";
  place.textContent = JSON.stringify({ found, wrong });
  document.body.append(place);
});
"""


class Visit(NamedTuple):
    """What a visit to a page found."""

    found: object  # what the script returned
    wrong: list[str]  # errors and warnings in the page, and breaches of its policy
    log: str  # what the browser said on standard error


def visit(page, tmp_path, script, *, dark=False):
    """Opens a page, runs the body of a function in it once it is loaded, and returns what that returned."""
    html = page.read_text(encoding="utf-8")
    allowed, count = re.subn(r"script-src '", f"script-src 'nonce-{_NONCE}' '", html, count=1)
    assert count == 1
    last = _REPORT.replace("SCRIPT", script).replace("ID", _RESULT)
    first, end = (f'<script nonce="{_NONCE}">{text}</script>' for text in (_WATCH, last))
    allowed = allowed.replace("<title>", f"{first}<title>", 1).replace("</body>", f"{end}</body>")
    copy = tmp_path / "visited.html"
    copy.write_text(allowed, encoding="utf-8")
    done = run_chromium(copy, tmp_path, "--dump-dom", dark=dark)
    (text,) = re.findall(rf'<pre id="{_RESULT}">(.*?)</pre>', done.stdout, re.DOTALL)
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(entity, letter)
    return Visit(**json.loads(text), log=done.stderr)


def run_chromium(page, tmp_path, *arguments, dark=False):
    """Runs the browser on a file, with a profile of its own and no network."""
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",  # root has none
            "--disable-gpu",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--enable-logging=stderr",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
