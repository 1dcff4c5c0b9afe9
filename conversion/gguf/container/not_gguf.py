"""What a file is that was given as a GGUF file but is not one: there are a few common mistakes, each with its own
remedy."""

from __future__ import annotations

import codecs
import re

_OLD_FORMATS = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}


def what_it_is(start: bytes, size: int) -> str:
    """A message about a file that begins with `start` and has `size` bytes: what it probably is, and what to do."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if size == 0:
        return "it is empty. Probably a download that never began; fetch it again"
    if size < 4 and b"GGUF".startswith(start):
        return f"it has only {size} bytes. Probably a download that was not finished; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        found = re.search(rb"^size (\d{1,20})$", text, re.MULTILINE)
        real = f" of {int(found[1])} bytes" if found else ""
        return (
            f"it is a git-lfs pointer, which stands for the real file{real} in a git repository. "
            "Run `git lfs pull` there, or download the file itself"
        )
    if text[:1] == b"<":
        return (
            "it is an HTML or XML page. Probably the server's response to a download that needed another address or a "
            "login; open it in a browser to see what it says"
        )
    if start[:4] in _OLD_FORMATS:
        return (
            f"it is in the {_OLD_FORMATS[start[:4]]} format, which GGUF replaced in August 2023. "
            "Download a GGUF file of the model, or convert the original weights"
        )
    if size > 8 and int.from_bytes(start[:8], "little") <= size - 8 and start[8:9] == b"{":
        return "it is a safetensors file. Give the folder that holds it, with its config.json, as a plain model"
    if start[:2] == b"PK":
        return "it is a zip archive, or a PyTorch checkpoint. Unpack the one; convert the other to safetensors or GGUF"
    if start[:1] == b"\x80":
        return (
            "it is a Python pickle, which can run code when opened and is not read. Convert it to safetensors or GGUF"
        )
    if not start.strip(b"\0"):
        return "it begins with zeros only. Probably a download that was not finished; fetch it again"
    if _is_text(start):
        return f"it is a text file that begins with {start[:40].decode('utf-8', 'replace')!r}"
    return (
        f"it begins with the bytes {start[:4]!r} where b'GGUF' is expected. It is another kind of file, "
        "or a later piece of a file that was cut in pieces; join those first"
    )


def _is_text(start: bytes) -> bool:
    try:
        # The last character may be incomplete, which the incremental decoder allows.
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in text)
