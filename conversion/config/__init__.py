"""Model configurations between formats, and the sizes that they may have."""
