"""The shell commands of a Markdown document, as one script that a test runs.

    ```console      lines that begin with `$ ` are commands, `> ` goes on with one, the rest is output
    ```sh           every line is a command

`make test` and `make demo` are left out: the one is running, the other is a suite of its own. A block that must not run
says why on the line above its fence, and is counted: `<!-- not run: needs a second machine -->`.

A command that ends in `&` is a server: the script goes on when it serves (see await_serving), and ends it by SIGTERM.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ELSEWHERE = frozenset({"make test", "make demo"})
AWAIT_SERVING = Path(__file__).with_name("await_serving.py")

_BLOCK = re.compile(
    r"^(?:<!-- not run:(?P<reason>[^\n]*)-->\n)?```(?P<language>console|sh|bash|shell)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FENCE = re.compile(r"^[ >]*```+ *(console|sh|bash|shell)\b", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class DocumentedCommands:
    lines: tuple[str, ...]
    """Of all blocks that run, in order."""
    reasons: tuple[str, ...]
    """One for each block that must not run."""

    def script(self) -> str:
        """For bash. Fails at the first command that fails, and if a server does not end with status 0."""
        await_serving = f"{shlex.quote(sys.executable)} {shlex.quote(str(AWAIT_SERVING))} $!"
        body: list[str] = []
        for line in self.lines:
            body.append(line)
            if line.endswith("&") and not line.endswith("&&"):
                body.append(await_serving)
        end_servers = 'for server in $(jobs -rp); do kill -TERM "$server"; wait "$server"; done'
        return "\n".join(["set -euo pipefail", *body, end_servers, ""])


def read_commands(markdown: str) -> DocumentedCommands:
    """Raises:
    ValueError: a block is excluded without a reason, or its fence does not stand alone at the start of a line.
    """
    blocks = list(_BLOCK.finditer(markdown))
    if len(blocks) != len(_FENCE.findall(markdown)):
        raise ValueError("a fence of shell commands stands alone at the start of a line, and so does its end")
    lines: list[str] = []
    reasons: list[str] = []
    for block in blocks:
        if block["reason"] is not None:
            reason = block["reason"].strip()
            if not reason:
                raise ValueError(f"a block is not run, and does not say why:\n{block[0]}")
            reasons.append(reason)
            continue
        is_console = block["language"] == "console"
        commands = _console_input(block["body"]) if is_console else block["body"].splitlines()
        lines += [line for line in commands if line.strip() not in ELSEWHERE]
    return DocumentedCommands(lines=tuple(lines), reasons=tuple(reasons))


def _console_input(body: str) -> list[str]:
    found: list[str] = []
    for line in body.splitlines():
        goes_on = bool(found) and found[-1].endswith("\\") and not line.startswith("$ ")
        if line.startswith(("$ ", "> ")):
            found.append(line[2:])
        elif goes_on:
            found.append(line)
    return found
