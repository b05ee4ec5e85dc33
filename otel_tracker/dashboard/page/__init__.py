"""The Streamlit page of the dashboard service: a process of its own that reads the JSON API.

`words.py`, `board.py` and `detail.py` are pure: they make of the API's answers what is drawn, as a
tree of `nodes.py`. `draw.js` draws such a tree, text as text. `script.py` is the Streamlit script.
"""

from typing import Final

ADDRESS: Final = "OTEL_TRACKER_PAGE_READS"
"""Environment variable of the page's process: the service's URL."""
REFRESH: Final = "OTEL_TRACKER_PAGE_REFRESH"
"""Seconds between two looks."""
TOKEN: Final = "OTEL_TRACKER_TOKEN"  # noqa: S105  (a name, and no secret)
"""What the page shows the service, and demands of its readers."""
