"""All flags and environment variables, and the check that their paths exist. No other package reads either."""
