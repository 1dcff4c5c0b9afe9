"""The engine thread that owns the device: messages, scheduler, rounds, output. Plain data in and out; no HTTP."""
