"""Attribution of an error to the plugin whose code it came through."""

import traceback
from importlib.metadata import entry_points

from stackwise_core.hookspecs import ENTRY_POINT_GROUP

LOCAL_MARK = "__stackwise_plugin__"
"""The global that the registry sets in a local plugin's module: the file's name."""


def culprit(error: BaseException) -> str | None:
    """Return the plugin whose code is innermost in an error's traceback; None if there is none."""
    packages = {
        entry_point.value.partition(":")[0].partition(".")[0]: entry_point.dist.name if entry_point.dist else None
        for entry_point in entry_points(group=ENTRY_POINT_GROUP)
    }
    packages.pop("stackwise_core", None)  # it registers implementations of its own
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        plugin = frame.f_globals.get(LOCAL_MARK) or packages.get(package)
        if plugin:
            return plugin
    return None
