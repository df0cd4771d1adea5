"""Opens a page in headless Chromium, runs a script in it and returns what that found."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

SCRIPT = """
<script>
const out = {};
%s
out.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
out.broken = [...document.images].filter(i => !i.complete || !i.naturalWidth).length;
document.body.textContent = "RESULT" + JSON.stringify(out) + "END";
</script>
</body>"""


def found(page: Path, script: str, scratch: Path, width: int = 1200) -> dict[str, Any]:
    """What `script` put into `out`, with the page's sideways overflow (`wide`) and its broken pictures (`broken`)."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "this test needs Chromium: apt-get install chromium, or leave it out with -m 'not browser'"
    clicked = page.with_name("clicked.html")
    clicked.write_text(page.read_text().replace("</body>", SCRIPT % script))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={scratch / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=5000",
               "--dump-dom", clicked.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search(r"RESULT(.*?)END", dom, re.S)[1]))
