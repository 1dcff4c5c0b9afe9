"""The thread that owns the device: messages, the scheduler, rounds, output. Plain data goes in and out; no HTTP."""
