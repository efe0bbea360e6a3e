"""What a person sees of a program on a terminal: its bars at each drawing, and the rows at the end."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def on_a_screen(code, columns, raw=False, **environment):
    """(bars, rows) of a program of Python. Bars: the rows from the cursor down, whenever they are erased.

    Args:
        raw: the bytes that it writes, as text, in place of the bars.
    """
    text = written(code, columns, **environment)
    return text if raw else shown(text, columns)


def written(code, columns=80, **environment):
    """Everything that a program of Python writes where both its streams are a terminal of so many columns."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))  # a bar of no columns is none
    env = {name: value for name, value in os.environ.items() if name not in ("TQDM_DISABLE", "NO_COLOR", "COLUMNS")}
    env |= {"TERM": "xterm-256color", **environment}
    with subprocess.Popen([sys.executable, "-c", code], stdout=other, stderr=other, stdin=other, env=env) as process:
        os.close(other)
        data = b""
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # Linux: the last writer has closed it
                break
            if not part:
                break
            data += part
        process.wait(timeout=60)
    os.close(main)
    text = data.decode()
    assert process.returncode == 0, text[-2000:]
    return text


def shown(text, columns):
    """The same of what it wrote: carriage returns, line breaks, cursor up, erasing; colors are left out."""
    rows, x, y, frames = [""], 0, 0, []
    for found in PARTS.finditer(text):
        count, command, control, words = found.groups()
        if command == "A":
            y = max(0, y - int(count or 1))
        elif command == "J":
            if any("━" in row for row in rows[y:]):
                frames.append("\n".join(rows[y:]))
            rows[y:] = [rows[y][:x]]
        elif control == "\r":
            x = 0
        elif control == "\n":
            x, y = 0, y + 1
        while words:
            if x == columns:
                x, y = 0, y + 1
            while y >= len(rows):
                rows.append("")
            part, words = words[: columns - x], words[columns - x :]
            rows[y] = rows[y].ljust(x)[:x] + part + rows[y][x + len(part) :]
            x += len(part)
        while y >= len(rows):
            rows.append("")
    return frames, rows
