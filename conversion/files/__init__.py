"""Files on disk, of any format: regular files only, JSON within bounds, typed fields, and output that appears only when
it is complete."""
