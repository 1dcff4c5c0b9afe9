"""Completions that may have more than text in them, taken apart into reasoning, text and tool calls."""
