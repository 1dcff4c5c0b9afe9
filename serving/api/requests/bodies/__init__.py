"""From the bytes of a body to its schema: within limits, with its unknown and unsupported fields told."""
