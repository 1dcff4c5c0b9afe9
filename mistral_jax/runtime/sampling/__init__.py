"""How a token is chosen: parameters as plain data, rules about tokens, truncation, and the draw on the device."""
