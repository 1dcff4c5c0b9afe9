"""The model that is served, as the HTTP side sees it: its names and adapters, its life, its live generations, and what
is counted. Knows no endpoint and no body."""
