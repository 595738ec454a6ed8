"""What a drive's process remarks, told like any warning.

Decided here and only here: what of the program's own log people see, and that the libraries' remarks are
none of it.
"""

from __future__ import annotations

import logging

from cloudmount.cli.output import Output, time_text


def tell_logs(out: Output, *, dated: bool) -> None:
    """Tell what goes wrong from now on; `dated` for a log file, with its time."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.exc_info is not None and out.verbose:
                text += f": {logging.Formatter().formatException(record.exc_info)}"
            elif record.exc_info is not None and record.exc_info[1] is not None:
                text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            out.warn(f"{time_text(int(record.created * 1e9))} {text}" if dated else text)

    logger = logging.getLogger("cloudmount")
    logger.addHandler(Handler(logging.WARNING))
    logger.propagate = False
    logging.getLogger().addHandler(logging.NullHandler())  # the Azure SDK's and urllib3's own remarks
