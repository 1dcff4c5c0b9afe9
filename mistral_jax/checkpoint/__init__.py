"""Loading weights from files to the device and saving them, and reading the rest of a model's files.

`conversion` reads the formats; this package places, fuses and packs arrays."""
