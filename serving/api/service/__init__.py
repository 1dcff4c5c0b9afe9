"""The served model as the HTTP side sees it: names and adapters, lifecycle, live generations, and metrics. Independent
of endpoints and bodies."""
