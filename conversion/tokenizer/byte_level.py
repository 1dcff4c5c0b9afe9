"""The printable alphabet in which byte-level BPE vocabularies (GPT-2, Llama 3, tekken) spell bytes."""

from __future__ import annotations

# Printable Latin-1 characters stand for themselves, the other 68 bytes for the code points from 256 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_REST = tuple(b for b in range(256) if b not in _PRINTABLE)
_LETTER_OF_BYTE = {chr(b): chr(b) for b in _PRINTABLE} | {chr(b): chr(256 + i) for i, b in enumerate(_REST)}
_TO_LETTERS = str.maketrans(_LETTER_OF_BYTE)
_BYTE_OF_LETTER = {letter: ord(byte) for byte, letter in _LETTER_OF_BYTE.items()}


def to_letters(data: bytes) -> str:
    """Spells bytes in the alphabet: b" \\xff" becomes "Ġÿ"."""
    return data.decode("latin-1").translate(_TO_LETTERS)


def from_letters(piece: str) -> bytes:
    """The bytes of a vocabulary entry; its own UTF-8 if it is not written in the alphabet."""
    try:
        return bytes([_BYTE_OF_LETTER[letter] for letter in piece])
    except KeyError:
        return piece.encode()
